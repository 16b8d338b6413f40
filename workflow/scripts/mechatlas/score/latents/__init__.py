"""Scores of latents' explanations: on tokens, on hard negatives, and in the running model."""
