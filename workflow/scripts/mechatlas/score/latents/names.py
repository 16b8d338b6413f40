"""Names of controls, baselines and variants of latents' scores."""

from __future__ import annotations

#: The explanation itself among controls.
OWN = "none"
#: Baselines: what a score is compared with though it need not fail.
LOOKUP, TRUE_ACTIVITY = "token_lookup", "true_activity"
BASELINES = (LOOKUP, TRUE_ACTIVITY)
RANDOM_DIRECTION = "random_direction"
#: The untouched model, and the model without the latent, among the (explainer, variant) of losses.
MODEL, ABLATED = ("", "model"), ("", "ablated")
