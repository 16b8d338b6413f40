"""Encode the activations of one chunk of windows with the dictionaries of all layers, and keep what is active.

Inputs: the chunk folder with activation shards, the dictionary files. Output: the folder of codes.
"""

from collections.abc import Sequence

from mechatlas.dictionaries.codes import encode_chunk
from mechatlas.dictionaries.files import load
from mechatlas.io import file_digest, provenance, read_provenance
from mechatlas.models.device import pick_device


def main(
    chunk: str,
    dictionaries: Sequence[str],
    layers: Sequence[int],
    point: str,
    dictionary: str,
    device: str,
    gpu: int,
    codes: str,
) -> None:
    """Encode layer by layer."""
    place = pick_device(gpu, device)
    digests = [file_digest(path) for path in dictionaries]
    facts = provenance(
        dictionary=dictionary,
        point=point,
        layers=list(layers),
        dictionary_hashes=digests,
        activations=read_provenance(f"{chunk}/index.json"),
    )
    # Loaded one after the other: a layer's weights are freed before the next layer's come.
    saes = _Loaded(dict(zip(layers, dictionaries, strict=True)), place)
    encode_chunk(saes, point, chunk, codes, dictionary=" ".join(digests), facts=facts)


class _Loaded(dict):
    """Layer -> dictionary, read when it is its turn."""

    def __init__(self, paths: dict[int, str], device: str) -> None:
        super().__init__(paths)
        self.device = device

    def items(self):  # noqa: ANN201
        for layer, path in super().items():
            yield layer, load(path, device=self.device)


if "snakemake" in globals():
    from mechatlas.job import job

    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
