"""Encode the activations of one chunk of windows with the dictionaries of all layers, and keep what is active.

Inputs: the chunk folder with activation shards, the folder of dictionaries. Output: the folder of codes.
"""

from mechatlas.job import job
from mechatlas.dictionaries.codes import encode_chunk
from mechatlas.dictionaries.collection import layers_of, read_dictionary
from mechatlas.io import file_digest, provenance, read_provenance
from mechatlas.models.device import pick_device


def main(
    chunk: str,
    weights: str,
    dictionary: str,
    device: str,
    gpu: int,
    codes: str,
) -> None:
    """Encode layer by layer."""
    place = pick_device(gpu, device)
    facts = provenance(
        dictionary=dictionary,
        weights=read_provenance(f"{weights}/index.json"),
        activations=read_provenance(f"{chunk}/index.json"),
    )
    layers = (
        (layer, read_dictionary(weights, layer, device=place)) for layer in layers_of(weights)
    )
    digest = file_digest(f"{weights}/index.json")
    encode_chunk(layers, chunk, codes, dictionary=f"{dictionary} {digest}", facts=facts)


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments, gpu=snakemake.resources.gpu)
