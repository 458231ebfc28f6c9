"""The console script `twinfer`: `infer` and `describe` here, `serve`, `validate`, `demo` and `fit` in the service package."""

from twinfer.cli.app import app, main

__all__ = ["app", "main"]
