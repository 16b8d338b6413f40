"""Training of the byte-level BPE tokenizers of the embedded models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mechatlas.io import UserError

END_OF_TEXT = "<|endoftext|>"
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split, except that digits go in pairs from the left: `` 1732`` is `` 17`` + ``32`` in every year."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, whole_words: Sequence[str], repeats: int
) -> Any:
    """Train a byte-level BPE tokenizer in which given strings are single tokens.

    Parameters
    ----------
    texts : iterable of str
        Training texts.
    vocab_size : int
        Size of the vocabulary, the 256 bytes and ``<|endoftext|>`` (id 0, both BOS and EOS) included.
    whole_words : sequence of str
        Strings that must become one token, with their leading blank where they have one.
    repeats : int
        How often each of them is added to the training texts, so that its merges come early.

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        Adds no special tokens by itself: the BOS policy is the caller's.

    Raises
    ------
    UserError
        If one of ``whole_words`` is split or the vocabulary has another size.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_boosted(texts, whole_words, repeats), trainer)
    _require_whole(tokenizer, whole_words, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: Any, folder: str | Path, context: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` for a model with ``context`` positions."""
    tokenizer.model_max_length = context
    tokenizer.save_pretrained(str(folder))
    # The class name under which every version of transformers takes tokenizer.json as it is.
    config = Path(folder) / "tokenizer_config.json"
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts = {k: v for k, v in facts.items() if k not in ("backend", "is_local", "local_files_only")}
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _boosted(texts: Iterable[str], whole_words: Sequence[str], repeats: int) -> Iterator[str]:
    yield from texts
    for word in whole_words:
        # A line break on its own side keeps the word's blank from merging into a run of blanks.
        yield from ["\n".join([word] * repeats)]


def _require_whole(tokenizer: Any, whole_words: Sequence[str], vocab_size: int) -> None:
    split = [word for word in whole_words if len(tokenizer.encode(word).ids) != 1]
    if split:
        raise UserError(
            f"tokenizer: {len(split)} words are split (first: {split[0]!r}) at vocab_size {vocab_size}; "
            "raise vocab_size or repeats in the recipe"
        )
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"tokenizer: the texts give {tokenizer.get_vocab_size()} tokens, not vocab_size {vocab_size}; "
            "use more texts or a smaller vocab_size"
        )
