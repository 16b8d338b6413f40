"""Explanations of dictionary latents: programs over tokens, their fit, and what a language model is asked."""
