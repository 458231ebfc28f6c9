"""Members' models, loaded as an ensemble's file names them."""

from pathlib import Path

import torch

from twinfer_server.loaders import LoadedModel, load
from twinfer_server.spec import MemberSpec
from twinfer_server.trust import Trust

TRUSTS_ALL = Trust(runs_any_code=True)


def load_source(model: str, folder: Path, trust: Trust = TRUSTS_ALL, **keys: object) -> LoadedModel:
    """Load the model of a member "vision" of an ensemble in `folder`, on the CPU; `keys` are further keys of the member."""
    document = {"model": model, "input": {"x": {"kind": "tensor", "dtype": "float32", "shape": [1]}}} | keys
    spec = MemberSpec.model_validate(document, context={"folder": folder})
    return load(spec, folder, torch.device("cpu"), trust, "members.vision")
