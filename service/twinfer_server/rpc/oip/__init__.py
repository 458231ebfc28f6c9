"""The Open Inference Protocol: a second way to ask the same engine, for clients of Triton and KServe. Translation only."""
