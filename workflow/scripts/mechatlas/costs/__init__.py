"""What a run will cost in time, memory and disk, from the configuration and measured runs (no torch here)."""
