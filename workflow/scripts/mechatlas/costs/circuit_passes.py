"""How many forward passes of one prompt the search for circuits takes, by what jobs can share and what they cannot.

The factors are from operations that torch counted (`torch.utils.flop_counter`) on demo-4l with 128 prompts and the
settings of config/paper-ioi.yaml, and of single edges and paths also at GPT-2 small's shape; there the sums are within
a factor of two of the counts. A run that starts in a later layer is a part of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mechatlas.config_spread import READERS
from mechatlas.costs.shapes import Shape

Config = Mapping[str, Any]
TRIED = 0.3  # of a pass, to run a set of nodes that differs from the present one
PER_EDGE = 0.2  # of a pass, to run one edge, which starts at the layer it leads into
ACDC = 2.5  # times that, as sets are also tried in vain
PER_SENDER = 0.65  # of a pass, for a path from each node into one input, through MLPs and not
SIZES = 7  # of circuits that one round of the search for the smallest tries; each round leaves an eighth of the sizes


def node_passes(nodes: Config, shape: Shape, task: Config) -> dict[str, float]:
    """Return the passes of each part of pruning nodes, with ``circuits.nodes``; jobs can share ``halves``."""
    count, found_on, held_out = _nodes(shape), task["prompts"], task["held_out"]
    greedy = 0.1 * count * found_on
    return {
        "halves": nodes["stability_samples"] * greedy,
        "greedy": greedy,
        # A round tries all nodes that are left, and step of them go.
        "least_harmful": TRIED * count**2 / (2 * nodes["least_harmful_step"]) * found_on,
        "judged": 0.5 * count * found_on
        + TRIED * count * (found_on + held_out)
        + TRIED * (2 * nodes["random_circuits"] + 2 * count) * held_out,
    }


def edge_passes(edges: Config, shape: Shape, task: Config) -> dict[str, float]:
    """Return the passes of each part of tracing edges, with ``circuits.edges``; jobs can share all but ``rest``."""
    heads, found_on, held_out = shape.layers * shape.heads, task["prompts"], task["held_out"]
    count = 1.5 * heads**2
    each = PER_EDGE * count
    points, methods = len(edges["shares"]), len(edges["methods"])
    attribution = methods * (2 + 2 * edges["steps"]) * (found_on + edges["exact_prompts"])
    by_exact = 2 * points * held_out * bool(edges["exact_prompts"])
    return {
        "acdc": edges["acdc_orders"] * ACDC * each * edges["acdc_prompts"],
        "paths": (1 + READERS * edges["path_receivers"]) * PER_SENDER * heads * found_on,
        "curves": (2 * methods + 0.5 * edges["curve_random_sets"]) * points * held_out,
        "smallest": SIZES * math.log(count, SIZES + 1) * found_on,
        "exact": each * edges["exact_prompts"],
        "rest": attribution + by_exact + 0.5 * edges["random_sets"] * held_out,
    }


def _nodes(shape: Shape) -> int:
    return shape.layers * (shape.heads + 1)
