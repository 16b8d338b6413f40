"""What stands below the figures: what is shown, its unit, how many prompts, what it is compared with."""

from __future__ import annotations

_INTERVAL = "Lines are bootstrap intervals over prompts"
_BAND = "Bands are bootstrap intervals over prompts"

_TEXTS = {
    "effect_map": """
        Clean output of one head put into the corrupted run, at all positions: share of the gap in {metric} between the
        two runs that it closes (ratio of means over {found}). 1: all of it; below 0: away from the answer.""",
    "top_effects": f"""
        The heads with the largest effects ({{found}}). {_INTERVAL}; pale: not to be told from zero after correction for
        the number of heads.""",
    "layer_bars": f"""
        The same for whole attention and MLP outputs of each layer ({{found}}). {_INTERVAL}.""",
    "directions": f"""
        Each head in both directions ({{found}}): restoring it in the corrupted run (is it sufficient?) and corrupting
        it in the clean run (is it needed?). {_INTERVAL}; dashed: both alike.""",
    "direct": """
        What each head writes into the logit difference itself ({found}), as a share of it. The other parts, with which
        all shares add up to 1: {others}.""",
    "knock_outs": f"""
        Drop of the metric when one component is removed: from the full model ({{found}}) and from the circuit
        ({{tested}}), in percent of the full model. {_INTERVAL}. Below 0: better without it.""",
    "pruning": f"""
        Metric of the circuit while nodes are removed for good, in percent of the full model ({{tested}}; dotted:
        {{found}}). {_BAND}. Dashed: where pruning had to stop.""",
    "inclusion": """
        How often each node is in the circuit that a random half of the prompts gives ({found}, {samples} halves).
        Framed: in the circuit of all of them.""",
    "random": """
        Metric of the circuit (green, with its interval) and of random circuits, a dot each, bar at the mean, in percent
        of the full model ({tested}).""",
    "curve": f"""
        Faithfulness of the strongest edges by their number ({{tested}}): 0 is the corrupted run, 1 the clean one.
        {_BAND}; grey, where it was measured: random edges, as many into every kind of destination. Ranked by strength.
        """,
    "graph_inputs": """
        The edge circuit, {which} ({found}); q, k, v: what a head reads. Lines are as wide as the metric changes when
        the edge carries its corrupted activation ({scored}); dashed: the metric gets better then.""",
    "graph_heads": """
        The same with the inputs of each head taken together and their scores added up.""",
    "overlay": """
        The node circuits of all tasks, one stripe a task; heavy frame: in all of them ({everywhere}). Lines are edges
        of the edge circuits between these nodes, in the colour of their task; grey: of several tasks, black: of all.
        """,
    "overlap": """
        Jaccard index of the heads of two circuits of nodes: 1 the same heads, 0 none in common.""",
    "cross_task": """
        The circuit of the row on the held-out prompts of the column: metric in percent of the full model ({counts}).
        Colours stop at 150. A circuit that is no more than what every task needs would do as well everywhere.""",
    "generation": """
        Share of answers that greedy generation gives exactly (up to {prompts} prompts each), without the heads of a
        circuit, beside {count} random sets with as many heads in every layer.""",
    "lens": f"""
        {{what}} of the answer and of other words, read from the residual after each layer through the final norm, at
        the last position ({{found}}). {_BAND}.""",
    "transitions": """
        Share of prompts in which the member before the answer is on top before a layer and the answer after it
        ({found}). Lines are Wilson intervals.""",
    "role_attention": f"""
        Strongest mean attention between different roles ({{found}}). {_INTERVAL}; grey marks: uniform attention.""",
    "pattern": """
        Mean attention of {head} over {prompts} prompts of one template. Positions are named by role, else by their
        token where it is always the same. Framed: the roles between which it attends most.""",
    "repeated": """
        Attention on random tokens that are shown twice ({sequences} sequences): to the token before, to the same token
        in the first copy, and to the one after it. Lines are bootstrap intervals over sequences; grey marks: uniform
        attention.""",
    "ov": """
        Share of {of} words that make a head promote the word itself, the next one, or its place, among its five most
        promoted tokens of the whole vocabulary when it attends to the word alone. Lines are Wilson intervals.""",
    "ov_matrix": """
        Which member (row) makes a head promote which (column), in logits. A blue diagonal copies; one step beside it
        continues the sequence.""",
    "qk_matrix": """
        Which member (column) a head looks for from which (row), position left out: attention logits of the heads that
        tell members from other words best.""",
}


def caption(name: str, **values: object) -> str:
    """Return a caption with its values filled in."""
    return " ".join(_TEXTS[name].split()).format(**values)
