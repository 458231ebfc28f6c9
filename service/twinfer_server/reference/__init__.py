"""Comparing, at every load, what an `hf:` member is given with what its directory's own library makes of the same input."""
