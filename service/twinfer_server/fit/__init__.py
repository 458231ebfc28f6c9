"""Fitting a fusion to labelled rows, and judging it on others: what `twinfer fit` does."""
