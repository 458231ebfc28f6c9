"""The twinfer service: an ensemble of models on one device behind one gRPC call.

The way of a request is `rpc -> engine -> ensemble -> device`; nothing calls backwards.
"""
