"""twinfer beside other servers that hold the same two models: `python -m benchmarks.peers`."""
