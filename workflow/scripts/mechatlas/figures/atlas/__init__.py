"""The atlas: static pages in which everything that is known of a model is looked at together."""
