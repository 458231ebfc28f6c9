"""Pickles, which run when they are read: no caller's bytes are one, and no file is read as one that the operator does not trust.

CVE-2024-2912: BentoML unpickled what callers sent.
"""

import ast
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from tests import oip
from tests.calls import BATCH_INFER, GET_ENSEMBLE, INFER, Failure, call, stream
from tests.gated import make_gated
from tests.servers import ROOT
from tests.sources import load_source
from tests.test_trust import Bait, plant_pickle, save_program
from tests.wounds.conftest import Victim
from twinfer.cli.inputs import read_inputs
from twinfer.load.rows import read_rows
from twinfer.v1 import ensemble_pb2, tensor_pb2
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.trust import Trust


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """The folder that must not be there when the test is over, though the bait makes it."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Bait(trace)))
    trace.rmdir()
    yield trace
    assert not trace.exists(), "it was unpickled"


def test_what_callers_send_is_never_unpickled(victim: Victim, trace: Path) -> None:
    bait = pickle.dumps(Bait(trace))
    tensors = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[len(bait)], data=bait)
    as_object = oip.tensor("numbers", "OBJECT", [1, 3])
    messages = [(INFER, bait), (BATCH_INFER, bait), (GET_ENSEMBLE, bait), (oip.MODEL_INFER, bait)]
    values = pb.Input(image=bait), pb.Input(tensor=tensors), pb.Input(text=bait.decode("latin-1"))
    rows = [make_gated(more={name: value}) for value in values for name in ("numbers", "image")]
    messages += [(INFER, row.SerializeToString()) for row in rows]
    messages.append((oip.MODEL_INFER, oip.request("gated", [(as_object, bait)]).SerializeToString()))
    messages.append((oip.MODEL_INFER, oip.request("gated", [oip.texts("image", bait)]).SerializeToString()))
    for method, message in messages:
        assert isinstance(call(victim.channel, method, message), Failure)
    assert len(list(stream(victim.channel, [bait]))) == 1


def save_pickles(folder: Path, trace: Path) -> None:
    """Write the bait as every kind of file that a model may come in."""
    content = pickle.dumps(Bait(trace))
    for name in ("model.pkl", "model.joblib", "model.pt2", "model.pt", "model.ts", "model.onnx", "model.safetensors", "model.npy"):
        (folder / name).write_bytes(content)
    for name in ("zip.pt2", "zip.pt", "zip.ts"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry in ("archive/data.pkl", "archive/code/x.py", "archive/version"):
                archive.writestr(entry, content)
    save_program(folder / "planted.pt2")
    plant_pickle(folder / "planted.pt2", trace)
    torch.save(Bait(trace), folder / "saved.pt")
    for name in ("hf", "both"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "vit"}')
        for weights in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
            torch.save(Bait(trace), folder / name / weights)
    save_file({"x": torch.zeros(1)}, folder / "both" / "model.safetensors", {"format": "pt"})


PICKLED = [
    "model.pkl", "model.joblib", "model.pt2", "model.pt", "model.ts", "model.onnx", "model.safetensors", "model.npy", "zip.pt2",
    "zip.pt", "zip.ts", "planted.pt2", "saved.pt", "hf:hf", "hf:both",
]  # fmt: skip


@pytest.mark.parametrize("model", PICKLED)
def test_no_model_is_unpickled_that_is_not_trusted(tmp_path: Path, trace: Path, model: str) -> None:
    save_pickles(tmp_path, trace)
    keys = {"architecture": "timm:resnet18"} if model.endswith("safetensors") else {}
    with pytest.raises(InvalidEnsemble):
        load_source(model, tmp_path, Trust(), output={"kind": "embedding"}, **keys)


@pytest.mark.parametrize("name", ["objects.npy", "raw.npy"])
def test_no_array_for_a_load_or_a_call_is_unpickled(tmp_path: Path, trace: Path, name: str) -> None:
    """An array of objects, and a pickle that is called an array; `twinfer fit` has its own test."""
    array: Any = np.array([Bait(trace)], object)
    np.save(tmp_path / "objects.npy", array, allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Bait(trace)))
    (tmp_path / "rows.csv").write_text(f"x\n{name}\n")
    with pytest.raises(typer.BadParameter):
        read_inputs(None, None, [f"x=@{tmp_path / name}"])
    with pytest.raises(ValueError, match="cannot be read"):
        read_rows(tmp_path, ensemble_pb2.Ensemble(inputs=[ensemble_pb2.InputSpec(name="x", kind="tensor")]))


UNPICKLING = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_nothing_that_unpickles_is_imported_and_no_array_is_read_with_pickles() -> None:
    """All code of service and client, for what is tried above is only what there is now."""
    for path in [*(ROOT / "service").rglob("*.py"), *(ROOT / "clients" / "python").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNPICKLING & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("allow_pickle") == "False", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only") == "True", path
