"""Which heads, MLPs and edges carry a behaviour."""
