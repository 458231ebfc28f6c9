"""The console script `twinfer`: `infer` and `describe` here, `serve`, `validate` and `demo` in the service package."""

from twinfer.cli.app import app, main

__all__ = ["app", "main"]
