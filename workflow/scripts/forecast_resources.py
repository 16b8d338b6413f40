"""Print what this configuration will cost in time, memory and disk, rule by rule, from measured runs.

Params: settings (the complete configuration), folders (of the models). No input and no output: the table is printed.
How it is computed, and how far it can be trusted: docs/scale.md.
"""

from collections.abc import Mapping
from typing import Any

from mechatlas.job import job
from mechatlas.costs.__main__ import forecast_lines
from mechatlas.costs.shapes import shape_of


def main(settings: Mapping[str, Any], folders: Mapping[str, str]) -> None:
    """Print the forecast."""
    models = settings["models"]
    shapes = {name: shape_of(name, models[name], folder) for name, folder in folders.items()}
    print("\n".join(forecast_lines(settings, shapes)))  # noqa: T201 - what it is for


if "snakemake" in globals():
    with job(snakemake) as arguments:
        main(**arguments)
