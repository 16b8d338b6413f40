"""The sizes of a run that has every analysis and takes as little time as it can; tests add what they are about."""

from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "demo-2l"


def small_run() -> dict[str, Any]:
    """Return a configuration with one model, one short corpus, a dictionary, a transcoder, and no task or graph yet."""
    here = {"models": [MODEL]}
    return {
        "models": {"demo-4l": None, MODEL: {"path": str(REPOSITORY / "resources/models" / MODEL)}},
        "sources": {
            "synthetic-qa": None,
            "synthetic-wiki": {"kind": "synthetic", "style": "wiki", "documents": 60},
        },
        "tasks": dict.fromkeys(("ioi", "numerals", "months", "induction")),
        "circuits": {
            "patching": {"points": ["z"]},
            "nodes": {
                **{"random_circuits": 4, "stability_samples": 1, "subset_samples": 1},
                "least_harmful_step": 8,
            },
            "edges": {
                **{"acdc_orders": 1, "acdc_prompts": 1, "acdc_threshold": 0.5, "random_sets": 2},
                **{"curve_random_sets": 1, "path_receivers": 1, "shares": [0.05, 1.0]},
            },
            "generation": {"prompts": 4},
        },
        "sampling": {"windows": 48, "window_len": 32, "pattern_windows": 6},
        "capture": {"topk": 40},
        "dictionaries": {
            "resid": here
            | {"latents": 32, "k": 4, "tokens": 1024, "batch_tokens": 128, "dead_tokens": 500}
        },
        "transcoders": {
            "clt": here | {"features": 32, "k": 4, "tokens": 1024, "batch_tokens": 128}
        },
        "graphs": dict.fromkeys(("ioi", "numerals", "induction")),
        "latents": {"max_latents": 2, "causal_windows": 2, "steering_windows": 1},
        "explain": {"programs": {"steps": 2, "rule_windows": 2}},
        "score": {
            **{"bootstrap": 20, "min_events": 5, "causal_windows": 2, "random_orders": 1},
            **{"replacement_shares": [1.0], "controls": ["swapped", "mean_pattern"]},
        },
    }
