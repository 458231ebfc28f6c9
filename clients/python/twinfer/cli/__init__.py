"""The console script `twinfer`: what asks a server is here, what runs one is in the service package."""

from twinfer.cli.app import app, main

__all__ = ["app", "main"]
