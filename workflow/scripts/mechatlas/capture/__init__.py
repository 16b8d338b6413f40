"""One streaming pass of a model over windows: head events, pattern samples, activation shards."""
