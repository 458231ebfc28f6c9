"""What `twinfer fit` does: fit a fusion to labelled rows, and judge it on others."""
