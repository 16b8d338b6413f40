"""Cut token windows from documents and split them by document.

Input: ``documents`` (Parquet: doc, text) and the tokenizer of a model folder. Output: ``windows`` (Parquet: window,
doc, split, start, pattern_sample, tokens).
"""

from mechatlas.job import job
from mechatlas.corpus.stored import StoredDocuments
from mechatlas.corpus.windows import sample_windows, write_windows
from mechatlas.models.config import read_config
from mechatlas.models.tokenizer import load_tokenizer


def main(
    documents: str,
    windows: str,
    model: str,
    source: str,
    windows_count: int,
    window_len: int,
    split: dict[str, float],
    pattern_windows: int,
    seed: int,
    bos: str | None = None,
) -> None:
    """Sample ``windows_count`` windows of ``window_len`` tokens with the tokenizer of the folder ``model``."""
    tokenizer = load_tokenizer(model, bos)
    sampled = sample_windows(
        StoredDocuments(documents),
        tokenizer,
        windows=windows_count,
        window_len=window_len,
        split=split,
        pattern_windows=pattern_windows,
        seed=seed,
        n_ctx=read_config(model).n_ctx,
    )
    write_windows(
        windows, sampled, source=source, tokenizer=tokenizer.hash, bos=tokenizer.bos_id, seed=seed
    )


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
