"""Dictionaries of latents: sparse autoencoders and transcoders, their training, files and measures."""
