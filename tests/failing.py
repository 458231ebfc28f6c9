"""An ensemble of two members that answer with their own inputs as logits, or fail where an input begins with FAILING."""

from pathlib import Path
from typing import Any

from tests.gated import make_gated, tensor
from tests.servers import write_ensemble
from twinfer.v1 import ensemble_service_pb2 as pb

FAILING = -2.0

TOML = """
    name = "failing"
    version = 7
    task = "classification"
    labels = "labels.txt"
    policy = "best_effort"
    execution = "serial"

    [members.other]
    model = "python:models.py:Numbers"
    [members.other.input.other]
    kind = "tensor"
    dtype = "float32"
    shape = [3]

    [members.numbers]
    model = "python:models.py:Numbers"
    [members.numbers.input.numbers]
    kind = "tensor"
    dtype = "float32"
    shape = [3]

    [fusion]
    method = "weighted_mean"
"""

MODELS = """
    import torch


    class Numbers(torch.nn.Module):
        def forward(self, numbers):
            if bool((numbers[:, 0] == -2.0).any()):
                raise RuntimeError("the model was asked to fail")
            return numbers
"""


def write_failing(folder: Path) -> Path:
    """Write the ensemble."""
    return write_ensemble(folder, TOML, {"models.py": MODELS, "labels.txt": "a\nb\nc\n"})


def make_failing(first: float = 0.0, request_id: str = "", **options: Any) -> pb.InferRequest:
    """Make a request for both members, of which `numbers` fails if `first` is FAILING."""
    more = {"other": pb.Input(tensor=tensor([0.0, 0.0, 9.0]))}
    return make_gated(first, request_id, pb.InferOptions(**options), more)
