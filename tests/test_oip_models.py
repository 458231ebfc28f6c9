"""What the Open Inference Protocol is told of the server and its models, and what it counts."""

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests import oip
from tests.calls import PATIENCE_SECONDS, Failure, call, connect
from tests.gated import Gate, row, write_gated
from tests.models import Opinion, write_members
from tests.servers import RunningServer, running
from twinfer.v1 import ensemble_admin_service_pb2 as admin
from twinfer.v1.ensemble_pb2 import BREAKER_STATE_DISABLED
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

MODELS = ["gated", "gated.numbers", "gated.picture", "gated.words", "gated.fusion"]
ALL = [*MODELS, "gated.encoded"]
ADMIN: dict[str, Any] = {"admin_listen": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(write_gated(tmp_path_factory.mktemp("oip") / "gated"), trust_code=True, **ADMIN) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with connect(server.address) as channel:
        yield channel


def metadata(channel: grpc.Channel, name: str) -> pb.ModelMetadataResponse:
    return oip.ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name=name), pb.ModelMetadataResponse)


def config(channel: grpc.Channel, name: str) -> dict[str, Any]:
    found = oip.ask(channel, "ModelConfig", pb.ModelConfigRequest(name=name, version="7"), pb.ModelConfigResponse)
    return MessageToDict(found.config, preserving_proto_field_name=True)


def tensors(found: Any) -> dict[str, tuple[str, list[int]]]:
    return {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in found}


def is_ready(channel: grpc.Channel, name: str = "") -> bool:
    if not name:
        return oip.ask(channel, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
    return oip.ask(channel, "ModelReady", pb.ModelReadyRequest(name=name), pb.ModelReadyResponse).ready


def statistics(channel: grpc.Channel, name: str = "") -> dict[str, pb.ModelStatistics]:
    found = oip.ask(channel, "ModelStatistics", pb.ModelStatisticsRequest(name=name), pb.ModelStatisticsResponse)
    return {model.name: model for model in found.model_stats}


# --- what there is -------------------------------------------------------------------------------------------------------


def test_the_server_is_live_and_ready_and_says_what_it_is(channel: grpc.Channel) -> None:
    assert oip.ask(channel, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
    assert is_ready(channel)
    found = oip.ask(channel, "ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert found.name == "twinfer"
    assert {"classification", "model_configuration", "statistics"} <= set(found.extensions)
    assert "system_shared_memory" not in found.extensions


def test_the_ensemble_each_member_and_the_fusion_are_models(channel: grpc.Channel) -> None:
    found = oip.ask(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
    assert [(model.name, model.version, model.state) for model in found.models] == [(name, "7", "READY") for name in ALL]
    assert [is_ready(channel, name) for name in ALL] == [True] * len(ALL)


def test_the_ensembles_metadata_names_its_tensors(channel: grpc.Channel) -> None:
    found = metadata(channel, "gated")
    assert (found.platform, list(found.versions)) == ("ensemble", ["7"])
    assert tensors(found.inputs) == {"numbers": ("FP32", [-1, 3]), "image": ("UINT8", [-1, 2, 2, 3]), "text": ("BYTES", [-1, 1])}
    outputs = {"prediction": ("FP32", [-1, 3]), "degraded": ("BOOL", [-1, 1])}
    for member in ("numbers", "picture", "words"):
        outputs |= {f"{member}.prediction": ("FP32", [-1, 3]), f"{member}.state": ("BYTES", [-1, 1])}
    assert tensors(found.outputs) == outputs


def test_the_ensemble_is_there_with_encoded_images_as_well(channel: grpc.Channel) -> None:
    found = metadata(channel, "gated.encoded")
    assert tensors(found.inputs)["image"] == ("BYTES", [-1, 1])
    assert tensors(found.outputs) == tensors(metadata(channel, "gated").outputs)
    rest = {"name", "input"}
    one, other = config(channel, "gated"), config(channel, "gated.encoded")
    assert {key: one[key] for key in one.keys() - rest} == {key: other[key] for key in other.keys() - rest}


def test_a_member_takes_only_its_own_inputs(channel: grpc.Channel) -> None:
    found = metadata(channel, "gated.picture")
    assert found.platform == "twinfer_python"
    assert tensors(found.inputs) == {"image": ("UINT8", [-1, 2, 2, 3])}
    assert tensors(found.outputs) == {"prediction": ("FP32", [-1, 3]), "state": ("BYTES", [-1, 1])}


def test_the_configuration_of_the_ensemble_names_its_steps(channel: grpc.Channel) -> None:
    found = config(channel, "gated")
    assert (found["name"], found["platform"], found["max_batch_size"]) == ("gated", "ensemble", 4)
    assert [step["model_name"] for step in found["ensemble_scheduling"]["step"]] == MODELS[1:]
    given = {tensor["name"] for tensor in found["input"]}
    for step in found["ensemble_scheduling"]["step"]:
        own = config(channel, step["model_name"])
        assert step["input_map"].keys() == {tensor["name"] for tensor in own["input"]}
        assert step["output_map"].keys() == {tensor["name"] for tensor in own["output"]}
        assert set(step["input_map"].values()) <= given, "every step takes what is given, or what an earlier one has made"
        given |= set(step["output_map"].values())
    assert {tensor["name"] for tensor in found["output"]} <= given


def test_the_configuration_of_a_member_is_of_one_row(channel: grpc.Channel) -> None:
    found = config(channel, "gated.numbers")
    assert found["input"] == [{"name": "numbers", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert (found["backend"], found["max_batch_size"]) == ("twinfer", 4)
    assert "ensemble_scheduling" not in found


def test_a_member_that_is_called_fusion_keeps_its_name(tmp_path: Path) -> None:
    folder = write_members(tmp_path / "pair", {"fusion": Opinion(), "other": Opinion()})
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        found = oip.ask(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
        assert [model.name for model in found.models] == ["pair", "pair.fusion", "pair.other", "pair.fusion_"]
        assert tensors(metadata(channel, "pair.fusion").inputs) == {"fusion": ("FP32", [-1, 1])}
        assert tensors(metadata(channel, "pair.fusion_").inputs).keys() == {"fusion", "other"}


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
    if name:  # without a name it means all
        asks["ModelStatistics"] = pb.ModelStatisticsRequest(name=name, version=version)
    for method, message in asks.items():
        found = call(channel, f"{oip.SERVICE}/{method}", message.SerializeToString())
        assert isinstance(found, Failure), method
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ENSEMBLE")
        assert "gated" in found.details


# --- readiness -----------------------------------------------------------------------------------------------------------


def test_a_member_that_is_switched_off_is_not_ready(tmp_path: Path) -> None:
    with (
        running(write_gated(tmp_path / "gated"), trust_code=True, **ADMIN) as server,
        connect(server.address) as channel,
        connect(server.admin_address) as operators,
    ):
        off = admin.SetMemberRequest(member="words", breaker_state=BREAKER_STATE_DISABLED)
        assert isinstance(call(operators, "/twinfer.v1.EnsembleAdminService/SetMember", off.SerializeToString()), bytes)
        found = oip.infer(channel, oip.request("gated.words", [oip.texts("text", "two")]))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "MEMBER_OFF")
        response = oip.infer(channel, oip.request("gated", [oip.texts("text", "two"), oip.raw("numbers", "FP32", [[0, 0, 9]])]))
        found = oip.read(response)
        assert (found["degraded"].tolist(), found["words.state"]) == ([[True]], [[b"OFF"]])


def test_while_it_loads_the_server_is_live_and_not_ready(tmp_path: Path) -> None:
    folder = write_gated(tmp_path / "gated")
    gate = Gate(folder, "load")
    seen: list[Any] = []
    done = threading.Event()

    def ask(address: str, admin_address: str) -> None:
        def run() -> None:  # not on the server's own loop, where nobody may wait
            gate.wait_for_somebody()
            with connect(address) as channel:
                seen.append(oip.ask(channel, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live)
                seen.append(is_ready(channel))
                seen.append(is_ready(channel, "gated"))
                index = oip.ask(channel, "RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
                seen.append(list(index.models))
                found = call(channel, f"{oip.SERVICE}/ModelMetadata", pb.ModelMetadataRequest(name="gated").SerializeToString())
                assert isinstance(found, Failure)
                seen.append(found.reason)
            done.set()
            gate.open()

        threading.Thread(target=run, daemon=True).start()

    with running(folder, on_listening=ask, trust_code=True) as server, connect(server.address) as channel:
        assert done.wait(PATIENCE_SECONDS)
        assert seen == [True, False, False, [], "LOADING"]
        assert is_ready(channel)


# --- statistics ----------------------------------------------------------------------------------------------------------


def counts(model: pb.ModelStatistics) -> list[int]:
    """The counts that load generators compare."""
    found = model.inference_stats
    spans = [found.success, found.queue, found.compute_input, found.compute_infer, found.compute_output]
    return [model.execution_count, *(span.count for span in spans)]


def test_every_request_counts_once_on_the_ensemble_and_on_all_that_it_is_made_of(channel: grpc.Channel) -> None:
    before = statistics(channel)
    assert list(before) == ALL
    rows = [oip.raw("numbers", "FP32", [[0, 0, 9]] * 3)]  # the two members without input count as well
    for _ in range(2):
        assert isinstance(oip.infer(channel, oip.request("gated", rows)), pb.ModelInferResponse)
    after = statistics(channel)
    for name in MODELS:
        assert [late - early for late, early in zip(counts(after[name]), counts(before[name]), strict=True)] == [2] * 6
        assert after[name].inference_count - before[name].inference_count == 6
        assert after[name].last_inference > 1.7e12
        sizes = {batch.batch_size: batch for batch in after[name].batch_stats}
        assert sizes[3].compute_infer.count >= 2
    ensemble, numbers, words = (after[name].inference_stats for name in ("gated", "gated.numbers", "gated.words"))
    assert ensemble.success.ns >= ensemble.compute_infer.ns >= numbers.compute_infer.ns > 0
    assert words.compute_infer.ns == 0


def test_a_member_that_is_asked_by_itself_counts_alone(channel: grpc.Channel) -> None:
    before = statistics(channel)
    assert isinstance(oip.infer(channel, oip.request("gated.words", [oip.texts("text", "two")])), pb.ModelInferResponse)
    after = statistics(channel)
    grown = [name for name in ALL if counts(after[name]) != counts(before[name])]
    assert grown == ["gated.words"]
    assert statistics(channel, "gated.words").keys() == {"gated.words"}


def test_a_request_that_fails_counts_as_a_failure(channel: grpc.Channel) -> None:
    before = statistics(channel, "gated")["gated"]
    assert isinstance(oip.infer(channel, oip.request("gated", [])), Failure)
    after = statistics(channel, "gated")["gated"]
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1
    assert counts(after) == counts(before)


def test_what_the_typed_service_answers_counts_in_the_metrics_of_both(tmp_path: Path) -> None:
    with (
        running(write_gated(tmp_path / "gated"), trust_code=True, metrics_listen="127.0.0.1:0") as server,
        connect(server.address) as channel,
    ):
        assert isinstance(call(channel, "/twinfer.v1.EnsembleService/Infer", row().SerializeToString()), bytes)
        request = oip.request("gated", [oip.raw("numbers", "FP32", [[0, 0, 9]] * 2)])
        assert isinstance(oip.infer(channel, request), pb.ModelInferResponse)
        assert isinstance(oip.infer(channel, oip.request("gated", [])), Failure)
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
            lines = page.read().decode().splitlines()
    assert 'twinfer_rows_total{code="OK",reason=""} 3.0' in lines
    assert 'twinfer_rows_total{code="INVALID_ARGUMENT",reason="MISSING_INPUT"} 1.0' in lines


# --- settings, and what there is not -------------------------------------------------------------------------------------


def test_settings_are_told_and_not_changed(channel: grpc.Channel) -> None:
    log = oip.ask(channel, "LogSettings", pb.LogSettingsRequest(), pb.LogSettingsResponse)
    assert log.settings["log_info"].bool_param
    trace = oip.ask(channel, "TraceSetting", pb.TraceSettingRequest(), pb.TraceSettingResponse)
    assert list(trace.settings["trace_level"].value) == ["OFF"]
    value = pb.LogSettingsRequest.SettingValue(bool_param=False)
    found = call(channel, f"{oip.SERVICE}/LogSettings", pb.LogSettingsRequest(settings={"log_info": value}).SerializeToString())
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="gated")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="gated")),
        ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="x")),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1)),
        ("ModelInfer", pb.ModelInferRequest(model_name="gated.fusion")),
        ("TraceSetting", pb.TraceSettingRequest(settings={"trace_level": pb.TraceSettingRequest.SettingValue(value=["OFF"])})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_server_has_not_is_unimplemented_with_its_reason(channel: grpc.Channel, method: str, message: Any) -> None:
    found = call(channel, f"{oip.SERVICE}/{method}", message.SerializeToString())
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert "allowed" in found.details


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_forgetting_all_shared_memory_is_always_well(channel: grpc.Channel, kind: str) -> None:
    name = f"{kind}SharedMemory"
    assert call(channel, f"{oip.SERVICE}/{name}Unregister", b"") == b""
    assert call(channel, f"{oip.SERVICE}/{name}Status", b"") == b""
