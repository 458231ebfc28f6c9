"""Names that lead out of the folder, and addresses that the server is made to fetch: neither is followed, whoever wrote them."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import onnx
import onnx.parser
import pytest
import torch
from google.protobuf.descriptor import FieldDescriptor
from safetensors.torch import save_file

from tests import oip
from tests.calls import GET_ENSEMBLE, INFER, Failure, call
from tests.gated import make_gated, write_gated
from tests.pretrained import SMALL
from tests.servers import DIGITS
from tests.sources import load_folder, load_source
from tests.wounds.conftest import Victim
from twinfer.load.rows import read_rows
from twinfer.v1 import ensemble_admin_service_pb2 as admin_pb
from twinfer.v1 import ensemble_pb2
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer_server.errors import InvalidEnsemble
from twinfer_server.spec import find_file
from twinfer_server.trust import Trust

UNTRUSTED = Trust()
URL = "http://127.0.0.1:9/model"
SECRET = "secret.bin"


@pytest.fixture(autouse=True)
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Fail where this process looks up a name or connects to anything but a server of the tests."""
    found: list[Any] = []
    connect = socket.socket.connect

    def refuse(*arguments: Any, **options: Any) -> Any:
        found.append(arguments[:2])
        raise OSError("no test may reach a network")

    def connect_to_tests(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and self.type == socket.SOCK_STREAM:
            refuse(address)
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", connect_to_tests)
    yield found
    assert found == []


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    """An ensemble beside which a file lies that is none of its own."""
    (tmp_path / SECRET).write_bytes(b"a\nb\nc\n")
    return write_gated(tmp_path / "gated")


def leaving(folder: Path) -> list[str]:
    """Give the ways out of a folder: up, absolute, by a link to a file, by a link to a folder, by what only looks inside."""
    outside = folder.parent / SECRET
    for name, target in (("link.bin", outside), ("up", folder.parent)):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return [f"../{SECRET}", str(outside), "link.bin", f"up/{SECRET}", f"./x/../../{SECRET}", f"labels.txt/../../{SECRET}"]


def replace_key(folder: Path, key: str, value: str, before: str) -> None:
    """Write `key` with `value` in front of a line of the ensemble's file, in the place of what it has."""
    spec = folder / "ensemble.toml"
    lines = [line for line in spec.read_text(encoding="utf-8").splitlines() if not line.strip().startswith(f"{key} =")]
    at = next(number for number, line in enumerate(lines) if line.strip().startswith(before)) + 1
    spec.write_text("\n".join([*lines[:at], f"{key} = {json.dumps(value)}", *lines[at:]]), encoding="utf-8")


KEYS = {
    "labels": ("labels", "version"),
    "the tokenizer": ("tokenizer", "[members.words.input.text]"),
    "a projection": ("projection", "[fusion]"),
    "texts": ("texts", "[fusion]"),
    "a fitted fusion": ("fitted", "[fusion]"),
}


@pytest.mark.parametrize(("key", "before"), KEYS.values(), ids=KEYS)
def test_no_key_of_an_ensemble_leads_out_of_its_folder(gated: Path, key: str, before: str) -> None:
    """CVE-2026-24208."""
    for value in leaving(gated):
        replace_key(gated, key, value, before)
        with pytest.raises(InvalidEnsemble, match=rf"{key}: the path leaves the ensemble folder"):
            load_folder(gated)


SUFFIXES = ["model.pt2", "model.pt", "model.ts", "model.onnx", "model.safetensors"]


@pytest.mark.parametrize("name", SUFFIXES)
def test_no_model_lies_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    """CVE-2026-24208; refused before trust is asked for, which knows digests and no places."""
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (tmp_path / name).write_bytes(b"x")
    (folder / f"link_{name}").symlink_to(tmp_path / name)
    keys: dict[str, Any] = {"architecture": "timm:resnet18"} if name.endswith("safetensors") else {}
    for model in (f"../{name}", str(tmp_path / name), f"link_{name}"):
        with pytest.raises(InvalidEnsemble, match=r"leaves the ensemble folder|needs timm"):
            load_source(model, folder, **keys)
        with pytest.raises(ValueError, match="leaves the ensemble folder"):
            find_file(folder, model)


@pytest.mark.parametrize("location", [f"../{SECRET}", f"x/../../{SECRET}", "link.bin", "absolute"])
def test_no_data_beside_a_graph_lies_outside_of_its_folder(gated: Path, location: str) -> None:
    """CVE-2026-24208: an ONNX graph says by itself in which files its tensors lie."""
    leaving(gated)
    (gated.parent / SECRET).write_bytes(bytes(4))
    where = str(gated.parent / SECRET) if location == "absolute" else location
    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[n, 1] x) => (float[n, 1] y) { y = Add(x, w) }'
    )
    weight = graph.graph.initializer.add(name="w", dims=[1], data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=where)
    (gated / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(InvalidEnsemble, match="keeps tensors in another file"):
        load_source("model.onnx", gated, UNTRUSTED)


def test_no_directory_of_hugging_face_has_files_outside_of_it(gated: Path) -> None:
    """CVE-2026-24208: a link in the directory, and a directory that is one."""
    leaving(gated)
    vit = gated / "vit"
    vit.mkdir()
    (vit / "config.json").write_text("{}")
    (vit / "model.safetensors").symlink_to(gated.parent / SECRET)
    for model in ("hf:vit", "hf:..", "hf:up", f"hf:{gated.parent}"):
        with pytest.raises((InvalidEnsemble, ValueError), match=r"leaves the ensemble folder|no such file"):
            load_source(model, gated, output={"kind": "embedding"})


def test_no_name_of_a_member_is_a_path(gated: Path) -> None:
    spec = gated / "ensemble.toml"
    text = spec.read_text(encoding="utf-8")
    for name in ("../x", "/x", ".", "a/b", "a\\\\b", "a\\u0000b"):
        spec.write_text(text.replace("members.words", f'members."{name}"'), encoding="utf-8")
        with pytest.raises(InvalidEnsemble, match=r"members\."):
            load_folder(gated)


def test_no_table_of_rows_names_files_outside_of_its_folder(gated: Path) -> None:
    """CVE-2026-24208: a table for a load, whose files are sent to a server; `twinfer fit` has its own test."""
    ensemble = ensemble_pb2.Ensemble(inputs=[ensemble_pb2.InputSpec(name="image", kind="image")])
    (gated / "inside.png").write_bytes(b"inside")
    (gated / "rows.csv").write_text("image\ninside.png\n")
    assert read_rows(gated, ensemble) == [{"image": b"inside"}]
    for value in leaving(gated):
        (gated / "rows.csv").write_text(f"image\n{value}\n")
        with pytest.raises(ValueError, match="leaves the folder"):
            read_rows(gated, ensemble)


PATHS = ["../gated", "/etc/passwd", "..", "%2e%2e%2fgated", "gated/../gated", "file:///etc/passwd", "gated\0", URL]


@pytest.mark.parametrize("name", PATHS)
def test_a_name_in_a_request_is_looked_up_and_never_a_path(victim: Victim, name: str) -> None:
    """CVE-2026-24208: names of ensembles, models, members and inputs, in either protocol."""
    requests: list[tuple[str, Any]] = [
        (INFER, pb.InferRequest(ensemble=name, inputs=make_gated().inputs)),
        (INFER, make_gated(more={name: pb.Input(text="x")})),
        (INFER, make_gated(options=pb.InferOptions(fusion_weights={name: 1.0}))),
        (GET_ENSEMBLE, pb.GetEnsembleRequest(ensemble=name)),
        (oip.MODEL_INFER, oip.request(name, [oip.raw("numbers", "FP32", [[0, 0, 9]])])),
        (oip.MODEL_INFER, oip.request("gated", [oip.raw("numbers", "FP32", [[0, 0, 9]])], [name])),
    ]
    for method, message in requests:
        found = call(victim.channel, method, message.SerializeToString())
        assert isinstance(found, Failure)
        assert found.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def test_an_operator_over_the_network_names_no_file() -> None:
    """CVE-2026-24208, and the management doors of TorchServe: what was fitted is read from the folder, or nothing is."""
    requests = [message for name, message in admin_pb.DESCRIPTOR.message_types_by_name.items() if name.endswith("Request")]
    fields = [field for message in requests for field in message.fields]
    assert {field.name for field in fields if field.type in (field.TYPE_STRING, field.TYPE_BYTES)} == {"method", "member"}
    assert [field.type for field in fields if field.name == "fitted"] == [FieldDescriptor.TYPE_BOOL]


# --- addresses --------------------------------------------------------------------------------------------------------

SOURCES = [
    URL,
    URL + ".safetensors",
    URL + ".onnx",
    URL + ".pt2",
    "hf:google/vit",
    f"hf:{URL}",
    "s3://bucket/model.onnx",
    f"file://{URL}.pt",
]


@pytest.mark.parametrize("model", SOURCES)
def test_no_model_is_fetched(tmp_path: Path, model: str) -> None:
    """ShellTorch (CVE-2023-43654): TorchServe fetched, and ran, a model from any address."""
    with pytest.raises(
        (InvalidEnsemble, ValueError), match=r"no such file|no loader|leaves the ensemble folder|names none|needs timm|nothing"
    ):
        load_source(model, tmp_path)


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/etc", "../model", "resnet18?x"])
def test_no_architecture_is_fetched(tmp_path: Path, name: str) -> None:
    """ShellTorch: timm reads the configuration behind such names from the network, or from any folder, weights or none."""
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidEnsemble, match="no name of timm's own"):
        load_source("model.safetensors", tmp_path, architecture=f"timm:{name}")


BACKBONE = {"backbone": "microsoft/resnet-50", "use_pretrained_backbone": True, "use_timm_backbone": False, "backbone_config": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "whose backbone is pretrained": {"model_type": "detr", **BACKBONE},
    "whose backbone is pretrained, of another kind": {"model_type": "maskformer", **BACKBONE},
    "whose code is elsewhere": {"model_type": "x", "auto_map": {"AutoConfig": "x/y--z.C", "AutoModel": "x/y--z.M"}},
    "which says that it is an address": {"model_type": "vit", "_name_or_path": URL, **SMALL},
    "which is an adapter of another": {"model_type": "vit", "base_model_name_or_path": "x/y", **SMALL},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_part_of_a_model_of_hugging_face_is_fetched(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """ShellTorch: a configuration names what else belongs to the model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # whatever the tests themselves run with
    (tmp_path / "it").mkdir()
    names = ("config.json", "adapter_config.json") if "base_model_name_or_path" in config else ("config.json",)
    for name in names:
        (tmp_path / "it" / name).write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "it" / "model.safetensors", {"format": "pt"})
    with pytest.raises((InvalidEnsemble, ValueError)):  # while its spec is read, or its model
        load_source("hf:it", tmp_path, UNTRUSTED, output={"kind": "embedding"})


ADDRESSES = [
    URL,
    f"file://{DIGITS}/ensemble.toml",
    "data:image/png;base64,iVBORw0KGgo=",
    str(DIGITS / "ensemble.toml"),
    "\\\\host\\share",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_input_is_fetched(victim: Victim, address: str) -> None:
    """ShellTorch, and vLLM's and others' image addresses: an image is its bytes, and a text is itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        ours = address.replace("127.0.0.1:9", f"127.0.0.1:{listener.getsockname()[1]}")
        for image in (pb.Input(text=ours), pb.Input(image=ours.encode()), pb.Input(texts={"values": [ours]})):
            found = call(victim.channel, INFER, make_gated(more={"image": image}).SerializeToString())
            assert isinstance(found, Failure)
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(call(victim.channel, INFER, make_gated(more={"text": pb.Input(text=ours)}).SerializeToString()), bytes)
        with pytest.raises(BlockingIOError):
            listener.accept()
