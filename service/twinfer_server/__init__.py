"""The twinfer service: an ensemble of models on one device behind one gRPC call.

The way of a request is `rpc -> engine -> ensemble -> device`; nothing calls backwards.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime from 1.31 on reports to its makers unless this stands before it is imported, and keeps files in HOME for that."""
