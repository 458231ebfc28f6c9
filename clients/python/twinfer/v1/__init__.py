"""The stubs of protos/twinfer/v1, made by `make protos` and not by hand."""
