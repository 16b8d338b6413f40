"""From pieces of text to a checked pair of token sequences, with any tokenizer.

A prompt is given as pieces ``(text, role)`` and turned into tokens piece by piece; the result must be what the
tokenizer makes of the whole text, so that roles point at real tokens and no text is ever searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from mechatlas.corpus.templates import Pieces, text_of
from mechatlas.io import UserError
from mechatlas.models.tokenizer import Tokenizer
from mechatlas.tasks.pairs import Pair

ANCHOR = "a"
"""A letter after which pieces are encoded, so that they are tokenized as inside a sentence."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids, the position of each role and the text of one prompt."""

    tokens: tuple[int, ...]
    roles: dict[str, int]
    text: str


class PromptBuilder:
    """Makes the pairs of one task with one tokenizer.

    Parameters
    ----------
    tokenizer : Tokenizer
    task : str
        Name of the task, for messages.
    bos : bool
        Whether BOS is put first.
    leading_blank : bool
        Whether a text begins with a blank, so that its first word is the token that it is elsewhere in a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, task: str, *, bos: bool = True, leading_blank: bool = True
    ):
        self.tokenizer = tokenizer
        self.task = task
        self.bos = bos
        self.leading_blank = leading_blank
        self._ids: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text as it stands inside a sentence; give a word with its blank.

        Raises
        ------
        UserError
            If the tokenizer joins it with what comes before.
        """
        if text not in self._ids:
            whole = self.tokenizer.encode(ANCHOR + text)
            count = len(self._anchor)
            if whole[:count] != self._anchor:
                raise UserError(
                    f"task {self.task}: the tokenizer joins {text!r} with the letter before it; "
                    "begin the piece with a blank or leave it out"
                )
            self._ids[text] = tuple(whole[count:])
        return self._ids[text]

    def single_words(self, words: Iterable[str], first: bool = False) -> tuple[str, ...]:
        """Return those words that are one token after a blank, and with ``first`` also where a text begins."""
        return tuple(
            word
            for word in words
            if len(self.ids(f" {word}")) == 1 and (not first or len(self._first(f" {word}")) == 1)
        )

    def prompt(self, pieces: Pieces) -> EncodedPrompt:
        """Encode a prompt; a role's position is that of the last token of its piece.

        Raises
        ------
        UserError
            If the tokenizer joins text across pieces or does not give back the text of a role.
        """
        tokens, roles = [self.tokenizer.bos_id] if self.bos else [], {}
        (first, role), *rest = pieces
        first = first if first.startswith(" ") else f" {first}"
        spans = [(first, role, self._first(first)), *((t, r, self.ids(t)) for t, r in rest)]
        for text, name, ids in spans:
            tokens.extend(ids)
            if name:
                self._check_role(text, name, ids)
                roles[name] = len(tokens) - 1
        text = text_of([(first, role), *rest])
        text = text if self.leading_blank else text[1:]
        self._check_text(text, tokens[int(self.bos) :])
        return EncodedPrompt(tuple(tokens), roles, text)

    def pair(
        self,
        clean: Pieces,
        corrupted: Pieces,
        answer: str,
        wrong: str,
        *,
        group: str,
        cell: str = "",
        fillers: Sequence[str] = (),
        corrupted_answer: str = "",
        choices: Sequence[str] = (),
        correct: Sequence[bool] = (),
    ) -> Pair:
        """Encode a clean and a corrupted prompt and what may follow.

        Parameters
        ----------
        clean, corrupted : list of (str, str)
            Pieces with the same roles.
        answer, wrong, corrupted_answer : str
            Texts with their leading blank. Where the tokenizer makes that blank a token of its own, as some do before
            a digit, it becomes part of the prompts.
        group, cell, fillers, choices, correct
            See `mechatlas.tasks.pairs.Pair`; choices as texts.

        Raises
        ------
        UserError
            If an answer is several tokens, or the prompts differ in length or in the positions of their roles.
        """
        one, two = self.prompt(clean), self.prompt(corrupted)
        self._check_aligned(one, two)
        shared, answer_id, wrong_id = self._answers(answer, wrong)
        self._check_text(one.text + answer, (*one.tokens[int(self.bos) :], *shared, answer_id))
        return Pair(
            clean=one.tokens + shared,
            corrupted=two.tokens + shared,
            answer=answer_id,
            wrong=wrong_id,
            roles=one.roles,
            group=group,
            cell=cell,
            text=one.text,
            corrupted_text=two.text,
            answer_text=answer,
            wrong_text=wrong,
            fillers=tuple(fillers),
            corrupted_answer=self.ids(corrupted_answer)[-1] if corrupted_answer else -1,
            choices=tuple(self._single(text) for text in choices),
            correct=tuple(correct),
        )

    def question(self, pieces: Pieces, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Encode a prompt and an answer of any number of tokens, given with its leading blank.

        Raises
        ------
        UserError
            If the tokenizer joins pieces, or the prompt with its answer.
        """
        prompt, said = self.prompt(pieces), self.ids(answer)
        self._check_text(prompt.text + answer, (*prompt.tokens[int(self.bos) :], *said))
        return prompt.tokens, said

    @cached_property
    def _anchor(self) -> list[int]:
        return self.tokenizer.encode(ANCHOR)

    def _first(self, text: str) -> tuple[int, ...]:
        """Tokens of a text's first piece, given with a blank."""
        return self.ids(text) if self.leading_blank else tuple(self.tokenizer.encode(text[1:]))

    def _single(self, text: str) -> int:
        ids = self.ids(text)
        if len(ids) != 1:
            raise self._split_answer(text, ids)
        return ids[0]

    def _answers(self, answer: str, wrong: str) -> tuple[tuple[int, ...], int, int]:
        one, two = self.ids(answer), self.ids(wrong)
        for text, ids in ((answer, one), (wrong, two)):
            if not ids or ids[:-1] != one[:-1] or self.tokenizer.decode(ids[:-1]).strip():
                raise self._split_answer(text, ids)
        if one == two:
            raise UserError(
                f"task {self.task}: answer and wrong answer are both {answer!r}; give different ones"
            )
        return one[:-1], one[-1], two[-1]

    def _split_answer(self, text: str, ids: Sequence[int]) -> UserError:
        parts = " ".join(repr(part) for part in self.tokenizer.strings(ids))
        return UserError(
            f"task {self.task}: the answer {text!r} is {len(ids)} tokens in this model's tokenizer ({parts}), but "
            "one is needed; leave such words out of the task or drop the task for this model"
        )

    def _check_role(self, text: str, role: str, ids: tuple[int, ...]) -> None:
        decoded = self.tokenizer.decode(ids)
        if decoded.strip() != text.strip():
            raise UserError(
                f"task {self.task}: the tokens of the role {role!r} read {decoded!r} instead of {text!r}; "
                "use words that this model's tokenizer gives back unchanged"
            )

    def _check_text(self, text: str, tokens: Sequence[int]) -> None:
        # Tokenizers of the SentencePiece kind put a blank before a text by themselves.
        if list(tokens) not in (self.tokenizer.encode(text), self.tokenizer.encode(text.lstrip())):
            raise UserError(
                f"task {self.task}: the tokenizer joins parts of the prompt {text!r}; "
                "use other words, or a model whose tokenizer splits at blanks and punctuation"
            )

    def _check_aligned(self, one: EncodedPrompt, two: EncodedPrompt) -> None:
        if len(one.tokens) != len(two.tokens):
            raise UserError(
                f"task {self.task}: {one.text!r} has {len(one.tokens)} tokens and its corrupted partner "
                f"{two.text!r} {len(two.tokens)}; corrupt with words of equally many tokens"
            )
        if one.roles != two.roles:
            raise UserError(
                f"task {self.task}: roles are at {one.roles} in {one.text!r} but at {two.roles} in its corrupted "
                "partner; give both the same roles in the same places"
            )
