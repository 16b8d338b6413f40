"""Tokenizers of the formats of GPT-2 (vocab.json, merges.txt) and Llama-2 (blank marks, digits one by one)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mechatlas.corpus import lexicon as lx
from mechatlas.models.tokenizer import Tokenizer, load_tokenizer
from mechatlas.tasks.ioi_pairs import STANDARD

SPLIT_WORDS = ("Zelda", "Yuri", "eleven")
"""Words that these tokenizers split."""
END = "<|endoftext|>"
SIZE = 4000
REPEATS = 4


def _words(split: Sequence[str] = SPLIT_WORDS) -> list[str]:
    texts = " ".join(f"{opener} {closer}" for opener, closer in STANDARD)
    fixed = [w for w in texts.replace(",", " ").split() if "{" not in w]
    words = dict.fromkeys([*lx.single_token_words(), *fixed, "The", "year"])
    return [word for word in words if word not in split and not word.isdigit()]


def gpt2_folder(folder: Path, split: Sequence[str] = SPLIT_WORDS) -> Path:
    """Write a byte-level BPE in GPT-2's format in which words but ``split`` are one token, with and without a blank."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    numbers = [str(n) for n in range(100)] + [f"{n:02d}" for n in range(100)]
    texts = [start + word for word in (*_words(split), *numbers) for start in ("", " ")] * REPEATS
    # Merged first, as in text full of years, so that " 1732" becomes " 17" and "32".
    texts += [f" {century}" for century in range(11, 20)] * REPEATS * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.model.save(str(folder))
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": END}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def gpt2_tokenizer(folder: Path, split: Sequence[str] = SPLIT_WORDS) -> Tokenizer:
    """Load the tokenizer that `gpt2_folder` writes."""
    return load_tokenizer(gpt2_folder(folder, split))


def llama_tokenizer() -> Tokenizer:
    """Return a tokenizer that marks blanks, puts one before a text and splits numbers into digits."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, trainers

    backend = Backend(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<s>", "<unk>"],
        initial_alphabet=list("0123456789.,"),
        show_progress=False,
    )
    # Words alone, so that no token reaches over a blank.
    backend.train_from_iterator(_words() * REPEATS, trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend, 0)
