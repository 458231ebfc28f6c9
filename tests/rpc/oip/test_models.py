"""What the Open Inference Protocol is told of the server and its models."""

import threading
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests import oip
from tests.calls import INFER, PATIENCE_SECONDS, Failure, call, connect
from tests.gated import Gate, make_gated, write_gated
from tests.servers import running
from twinfer.v1 import ensemble_admin_service_pb2 as admin
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_DISABLED
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

MODELS = ["gated", "gated.numbers", "gated.picture", "gated.words"]
NUMBERS = oip.raw("numbers", "FP32", [[0, 0, 9]])


def metadata(channel: grpc.Channel, name: str) -> pb.ModelMetadataResponse:
    return oip.ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name=name), pb.ModelMetadataResponse)


def config(channel: grpc.Channel, name: str) -> dict[str, Any]:
    found = oip.ask(channel, "ModelConfig", pb.ModelConfigRequest(name=name, version="7"), pb.ModelConfigResponse)
    return MessageToDict(found.config, preserving_proto_field_name=True)


def index(channel: grpc.Channel, ready: bool = False) -> list[tuple[str, str, str]]:
    found = oip.ask(channel, "RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), pb.RepositoryIndexResponse)
    return [(model.name, model.version, model.state) for model in found.models]


def tensors(found: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in found}


def is_ready(channel: grpc.Channel, name: str = "") -> bool:
    if not name:
        return oip.ask(channel, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
    return oip.ask(channel, "ModelReady", pb.ModelReadyRequest(name=name), pb.ModelReadyResponse).ready


# --- what there is -------------------------------------------------------------------------------------------------------


def test_the_server_is_live_and_ready_and_says_what_it_is(channel: grpc.Channel) -> None:
    assert oip.ask(channel, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
    assert is_ready(channel)
    found = oip.ask(channel, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert found.name == "twinfer"
    assert "model_configuration" in found.extensions
    # What is named here, load generators and clients count on.
    assert not {"classification", "statistics", "system_shared_memory", "cuda_shared_memory", "trace"} & set(found.extensions)


def test_the_ensemble_and_each_member_are_models(channel: grpc.Channel) -> None:
    assert index(channel) == [(name, "7", "READY") for name in MODELS]
    assert [is_ready(channel, name) for name in MODELS] == [True] * len(MODELS)


def test_the_ensembles_metadata_names_its_tensors(channel: grpc.Channel) -> None:
    found = metadata(channel, "gated")
    assert (found.platform, list(found.versions)) == ("twinfer_ensemble", ["7"])
    assert tensors(found.inputs) == {"numbers": ("FP32", [-1, 3]), "image": ("UINT8", [-1, 2, 2, 3]), "text": ("BYTES", [-1, 1])}
    outputs = {"prediction": ("FP32", [-1, 3]), "degraded": ("BOOL", [-1, 1])}
    for member in ("numbers", "picture", "words"):
        outputs |= {f"{member}.prediction": ("FP32", [-1, 3]), f"{member}.state": ("BYTES", [-1, 1])}
    assert tensors(found.outputs) == outputs


def test_a_member_takes_only_its_own_inputs(channel: grpc.Channel) -> None:
    found = metadata(channel, "gated.picture")
    assert found.platform == "twinfer_python"
    assert tensors(found.inputs) == {"image": ("UINT8", [-1, 2, 2, 3])}
    assert tensors(found.outputs) == {"prediction": ("FP32", [-1, 3]), "state": ("BYTES", [-1, 1])}


def test_the_configuration_has_the_shapes_of_one_request(channel: grpc.Channel) -> None:
    ensemble, member = config(channel, "gated"), config(channel, "gated.numbers")
    assert member["input"] == [{"name": "numbers", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert ensemble["input"] == [
        {"name": "numbers", "data_type": "TYPE_FP32", "dims": ["3"], "optional": True},
        {"name": "image", "data_type": "TYPE_UINT8", "dims": ["2", "2", "3"], "optional": True},
        {"name": "text", "data_type": "TYPE_STRING", "dims": ["1"], "optional": True},
    ]
    assert {output["name"] for output in ensemble["output"]} == set(tensors(metadata(channel, "gated").outputs))
    for found in (ensemble, member):
        assert (found["backend"], found["max_batch_size"]) == ("twinfer", 4)
        assert found["dynamic_batching"] == {"priority_levels": "3", "default_priority_level": "2"}


@pytest.mark.parametrize(
    ("name", "version"),
    [("digits", ""), ("gated", "8"), ("gated", "seven"), ("gated.", ""), ("numbers", ""), ("", ""), ("k" * 100_000, "")],
    ids=["another name", "another version", "no number", "no member", "a member without its ensemble", "nothing", "100 kB"],
)
def test_what_is_not_served_is_not_found(channel: grpc.Channel, name: str, version: str) -> None:
    asks = {
        "ModelReady": pb.ModelReadyRequest(name=name, version=version),
        "ModelMetadata": pb.ModelMetadataRequest(name=name, version=version),
        "ModelConfig": pb.ModelConfigRequest(name=name, version=version),
        "ModelInfer": pb.ModelInferRequest(model_name=name, model_version=version),
    }
    for method, message in asks.items():
        found = call(channel, f"{oip.SERVICE}/{method}", message.SerializeToString())
        assert isinstance(found, Failure), method
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ENSEMBLE")
        assert "gated" in found.details


MEMORY = [f"{kind}SharedMemory{act}" for kind in ("System", "Cuda") for act in ("Status", "Register", "Unregister")]


@pytest.mark.parametrize(
    "method", ["ModelStatistics", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings", *MEMORY]
)
@pytest.mark.parametrize("message", [b"", b"\xff\xff"], ids=["nothing", "no message"])
def test_what_the_server_has_not_is_unimplemented_with_its_reason(channel: grpc.Channel, method: str, message: bytes) -> None:
    found = call(channel, f"{oip.SERVICE}/{method}", message)
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert "allowed" in found.details


# --- readiness and counts ------------------------------------------------------------------------------------------------


def test_a_member_that_is_off_is_not_ready(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    with (
        running(folder, trust_code=True, admin_listen="127.0.0.1:0") as server,
        connect(server.address) as channel,
        connect(server.admin_address) as operators,
    ):
        off = admin.SetMemberRequest(member="words", breaker_state=BREAKER_STATE_DISABLED)
        assert isinstance(call(operators, "/twinfer.v1.EnsembleAdminService/SetMember", off.SerializeToString()), bytes)
        found = oip.infer(channel, oip.request("gated.words", [oip.texts("text", "two")]))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MEMBER_OFF")
        outputs = oip.outputs(channel, oip.texts("text", "two"), NUMBERS)
        assert (outputs["degraded"].tolist(), outputs["words.state"]) == ([[True]], [[b"OFF"]])
        while is_ready(channel, "gated.words"):  # readiness is told a little later
            pass
        assert index(channel) == [(name, "7", "UNAVAILABLE" if name == "gated.words" else "READY") for name in MODELS]
        assert index(channel, ready=True) == [(name, "7", "READY") for name in MODELS if name != "gated.words"]


def test_while_it_loads_the_server_is_live_and_not_ready(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    gate = Gate(folder, "load")
    seen: list[Any] = []
    done = threading.Event()

    def ask(address: str, *further: str) -> None:
        def run() -> None:  # not on the server's own loop, which may not wait
            gate.wait_until_reached()
            with connect(address) as channel:
                seen.append(oip.ask(channel, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live)
                seen.extend((is_ready(channel), is_ready(channel, "gated"), index(channel)))
                for method, message in (("ModelMetadata", pb.ModelMetadataRequest()), ("ModelInfer", pb.ModelInferRequest())):
                    found = call(channel, f"{oip.SERVICE}/{method}", message.SerializeToString())
                    assert isinstance(found, Failure)
                    seen.append(found.reason)
            done.set()
            gate.open()

        threading.Thread(target=run, daemon=True).start()

    with running(folder, on_listening=ask, trust_code=True) as server, connect(server.address) as channel:
        assert done.wait(PATIENCE_SECONDS)
        assert seen == [True, False, False, [], "LOADING", "LOADING"]
        assert is_ready(channel)


def test_both_services_count_in_the_same_metrics(folder: Path) -> None:
    with running(folder, trust_code=True, metrics_listen="127.0.0.1:0") as server, connect(server.address) as channel:
        assert isinstance(call(channel, INFER, make_gated().SerializeToString()), bytes)
        oip.outputs(channel, oip.raw("numbers", "FP32", [[0, 0, 9]] * 2))
        assert isinstance(oip.infer(channel, oip.request("gated", [])), Failure)
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
            lines = page.read().decode().splitlines()
    assert "twinfer_requests_total 4.0" in lines
    assert 'twinfer_request_failures_total{code="INVALID_ARGUMENT",reason="MISSING_INPUT"} 1.0' in lines
