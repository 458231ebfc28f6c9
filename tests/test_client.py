"""The Python client, against real servers that follow a script."""

import asyncio
import inspect
import io
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import ExifTags, Image

import twinfer
from tests.pictures import encode
from twinfer import (
    AsyncClient,
    Attribution,
    Client,
    MemberState,
    Outcome,
    Prediction,
    Reason,
    ScoredClass,
    Stage,
    Tensor,
    errors,
    make_request,
)
from twinfer.v1 import ensemble_pb2, ensemble_service_pb2, ensemble_service_pb2_grpc, error_pb2, tensor_pb2
from twinfer_server import errors as server_errors
from twinfer_server.inputs.kind import IN_FULL
from twinfer_server.inputs.picture import read_picture

Context = grpc.ServicerContext
Script = Callable[[ensemble_service_pb2.InferRequest, Context], ensemble_service_pb2.InferResponse]
PATIENCE_SECONDS = 20  # what a test waits for something that happens at once, before it fails

ANSWER = ensemble_service_pb2.InferResponse(
    ensemble="digits",
    version=3,
    prediction={"classification": {"classes": [{"index": 5, "label": "five", "probability": 0.75}]}},
    members=[
        {"name": "vision", "state": "MEMBER_STATE_OK", "weight": 1.0, "device_time": {"nanos": 1_500_000}},
        {
            "name": "language",
            "state": "MEMBER_STATE_FAILED",
            "error": {"code": 13, "reason": "REASON_NOT_FINITE", "member": "language", "stage": "STAGE_MEMBER"},
        },
    ],
    degraded=True,
    timings={"total": {"nanos": 2_000_000}, "batch_size": 4},
)


class ScriptedService(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Answers as the test says, and remembers what it was asked."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or (lambda request, context: ANSWER)
        self.requests: list[ensemble_service_pb2.InferRequest] = []
        self.seconds_left: list[float | None] = []

    def Infer(self, request: ensemble_service_pb2.InferRequest, context: Context) -> Any:
        self.requests.append(request)
        self.seconds_left.append(context.time_remaining())
        return self.script(request, context)

    def BatchInfer(self, request: ensemble_service_pb2.BatchInferRequest, context: Context) -> Any:
        self.seconds_left.append(context.time_remaining())
        self.requests.extend(request.requests)
        return batch_answer(request)

    def InferStream(
        self, request_iterator: Iterator[ensemble_service_pb2.InferStreamRequest], context: Context
    ) -> Iterator[ensemble_service_pb2.InferStreamResponse]:
        self.seconds_left.append(context.time_remaining())
        for message in request_iterator:
            self.requests.append(message.request)
            yield stream_answer(message.request.request_id)

    def GetEnsemble(self, request: ensemble_service_pb2.GetEnsembleRequest, context: Context) -> Any:
        self.seconds_left.append(context.time_remaining())
        ensemble = ensemble_pb2.Ensemble(
            name="digits",
            labels=["zero"],
            fusion={"version": 7, "temperatures": {"vision": 2.0}, "fitted": True},
            cascade={"first": "vision", "gate": 0.75},
        )
        return ensemble_service_pb2.GetEnsembleResponse(ensemble=ensemble)


def batch_answer(request: ensemble_service_pb2.BatchInferRequest) -> ensemble_service_pb2.BatchInferResponse:
    """Answer every row but those whose text is "bad"."""
    failure = {"code": 3, "reason": "REASON_INVALID_INPUT", "stage": "STAGE_DECODE", "text": "found bad"}
    return ensemble_service_pb2.BatchInferResponse(
        results=[{"error": failure} if row.inputs["text"].text == "bad" else {"response": ANSWER} for row in request.requests]
    )


def stream_answer(request_id: str) -> ensemble_service_pb2.InferStreamResponse:
    answer = ensemble_service_pb2.InferStreamResponse(request_id=request_id, response=ANSWER)
    answer.response.request_id = request_id
    return answer


@contextmanager
def serving(
    service: ensemble_service_pb2_grpc.EnsembleServiceServicer,
    more: Callable[[grpc.Server], object] = lambda server: None,
) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8))
    ensemble_service_pb2_grpc.add_EnsembleServiceServicer_to_server(service, server)
    more(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Caller:
    """Drives the blocking client or the async one with the same words, a fresh client for each call."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def call(self, method: str, address: str, *args: Any, client: Mapping[str, Any] | None = None, **named: Any) -> Any:
        settings = {"attempts": 1, **(client or {})}
        if self.kind == "blocking":
            with Client(address, **settings) as blocking:
                return getattr(blocking, method)(*args, **named)

        async def run() -> Any:
            async with AsyncClient(address, **settings) as waiting:
                return await getattr(waiting, method)(*args, **named)

        return asyncio.run(run())

    def infer(self, address: str, inputs: Any = None, **named: Any) -> twinfer.Response:
        answer: twinfer.Response = self.call("infer", address, {"text": "fve"} if inputs is None else inputs, **named)
        return answer

    def infer_many(self, address: str, rows: Iterable[Any], seen: list[Outcome] | None = None, **named: Any) -> list[Outcome]:
        outcomes = [] if seen is None else seen
        if self.kind == "blocking":
            with Client(address, attempts=1) as blocking:
                for outcome in blocking.infer_many(rows, **named):
                    outcomes.append(outcome)
            return outcomes

        async def run() -> None:
            async with AsyncClient(address, attempts=1) as waiting:
                async for outcome in waiting.infer_many(rows, **named):
                    outcomes.append(outcome)

        asyncio.run(run())
        return outcomes


@pytest.fixture(params=["blocking", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


@pytest.fixture
def refused_address() -> Iterator[str]:
    """An address that nobody else gets, and where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


# --- nothing forgotten ------------------------------------------------------------------------------------------------


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: member for name, member in vars(kind).items() if not name.startswith("_")}
        return {name: list(inspect.signature(member).parameters) for name, member in public.items()} | {
            "__init__": list(inspect.signature(kind).parameters)
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize(
    ("ours", "contract"),
    [(Reason, error_pb2.Reason), (Stage, error_pb2.Stage), (MemberState, ensemble_service_pb2.MemberState)],
    ids=["Reason", "Stage", "MemberState"],
)
def test_the_enums_are_the_contracts_own(ours: Any, contract: Any) -> None:
    assert {contract.DESCRIPTOR.name == name for name in [ours.__name__]} == {True}
    prefix = {"Reason": "REASON_", "Stage": "STAGE_", "MemberState": "MEMBER_STATE_"}[ours.__name__]
    assert {prefix + name for name in ours} == set(contract.keys())


def tree(root: type[Exception]) -> dict[str, str]:
    """Names of classes, each with its parent's."""
    found = {child.__name__: root.__name__ for child in root.__subclasses__()}
    for child in root.__subclasses__():
        found |= tree(child)
    return found


def test_the_exceptions_mirror_the_servers() -> None:
    ours = tree(errors.TwinferError)
    assert ours.pop("MessageTooLarge") == "InvalidRequest"  # the one that only a client can raise
    assert ours == tree(server_errors.TwinferError)
    for name in ours:
        ours_class, theirs = getattr(errors, name), getattr(server_errors, name)
        assert ours_class.default_code.value[0] == theirs.code
        assert ours_class.default_reason == (theirs.reason.name if hasattr(theirs, "reason") else "UNSPECIFIED")


def test_importing_the_client_needs_nothing_but_grpcio_and_protobuf() -> None:
    program = """
import sys
ABSENT = {"torch", "numpy", "typer", "click", "rich", "PIL", "pydantic", "grpc_health", "twinfer_server"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import twinfer
twinfer.make_request({"text": "fve", "image": b"png"})
try:
    twinfer.make_request({"text": 5})
except TypeError:
    print("fine")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_reads_as_plain_values(caller: Caller) -> None:
    with serving(ScriptedService()) as address:
        answer = caller.infer(address)
    assert (answer.label, answer.probability, answer.ensemble, answer.version) == ("five", 0.75, "digits", 3)
    assert answer.degraded
    assert answer.disagreement is None
    assert (answer.timings.total_ms, answer.timings.batch_size, answer.timings.overlap_ratio) == (2.0, 4, None)
    assert list(answer.members) == ["vision", "language"]
    vision, language = answer.members.values()
    assert (vision.state, vision.device_ms, vision.error) == ("OK", 1.5, None)
    assert (language.state, language.device_ms) == (MemberState.FAILED, None)
    assert isinstance(language.error, errors.NotFinite)
    assert answer.message == ANSWER


def test_an_explained_answer_reads_as_plain_values(caller: Caller) -> None:
    two, one = [{"index": 0, "probability": 0.5}, {"index": 1, "probability": 0.5}], [{"index": 1, "probability": 0.75}]
    explained = ensemble_service_pb2.InferResponse(
        prediction={"multi_label": {"labels": two}},
        members=[
            {"name": "vision", "prediction": {"tensor": {"dtype": "DATA_TYPE_FP32", "shape": [1, 2], "data": b"\0" * 8}}},
            {"name": "language", "attribution": {"delta": 0.25, "without": {"multi_label": {"labels": one}}}},
        ],
        fusion_version=7,
    )
    with serving(ScriptedService(lambda request, context: explained)) as address:
        answer = caller.infer(address, explain=True)
    assert answer.fusion_version == 7
    assert [label.probability for label in answer.prediction.labels] == [0.5, 0.5]
    vision, language = answer.members.values()
    assert vision.prediction == Prediction(tensor=Tensor((1, 2), b"\0" * 8))
    assert vision.attribution is None
    assert language.attribution == Attribution(0.25, Prediction(labels=(ScoredClass(1, "", 0.75),)))


def test_an_embedding_has_no_label() -> None:
    answer = twinfer.Response.from_message(ensemble_service_pb2.InferResponse(prediction={"embedding": {"values": [1.0, 0.5]}}))
    assert answer.embedding == (1.0, 0.5)
    with pytest.raises(LookupError, match="no classes"):
        _ = answer.label


def test_a_state_that_only_a_newer_server_knows_is_unspecified() -> None:
    answer = twinfer.Response.from_message(ensemble_service_pb2.InferResponse(members=[{"name": "vision", "state": 99}]))
    assert answer.members["vision"].state is MemberState.UNSPECIFIED


def test_describe_returns_the_ensemble(caller: Caller) -> None:
    with serving(ScriptedService()) as address:
        ensemble = caller.call("describe", address)
    assert (ensemble.name, list(ensemble.labels)) == ("digits", ["zero"])
    assert (ensemble.fusion.version, dict(ensemble.fusion.temperatures), ensemble.cascade.first) == (7, {"vision": 2.0}, "vision")


# --- inputs -----------------------------------------------------------------------------------------------------------


def png() -> bytes:
    return encode(Image.new("L", (3, 2), 7))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "CMYK", "YCbCr", "HSV"])
def test_a_pillow_image_of_any_mode_is_sent_as_png(mode: str) -> None:
    sent = make_request({"image": Image.new(mode, (3, 2))}).inputs["image"].image
    decoded = Image.open(io.BytesIO(sent))
    assert (decoded.format, decoded.size) == ("PNG", (3, 2))


def test_a_pillow_image_keeps_its_pixels() -> None:
    sent = make_request({"image": Image.new("L", (3, 2), 7)}).inputs["image"].image
    assert list(Image.open(io.BytesIO(sent)).tobytes()) == [7] * 6


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_a_pillow_image_of_16_bits_keeps_them(mode: str) -> None:
    image = Image.frombytes(mode, (3, 1), np.array([7, 300, 65535], dtype=">u2" if mode == "I;16B" else "<u2").tobytes())
    sent = make_request({"image": image}).inputs["image"].image
    assert np.asarray(Image.open(io.BytesIO(sent))).tolist() == [[7, 300, 65535]]


@pytest.mark.parametrize("mode", ["F", "I", "I;16N"])
def test_a_pillow_image_of_which_nobody_knows_the_white_is_refused(mode: str) -> None:
    with pytest.raises(TypeError, match=rf"^inputs\['image'\] is a PIL image of mode '{mode}'; allowed: 8 or 16 bits per channel"):
        make_request({"image": Image.new(mode, (3, 2))})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_pillow_image_is_turned_upright_like_its_file(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    corner = np.zeros((16, 24, 3), dtype=np.uint8)
    corner[:8, :8] = 255
    file = encode(Image.fromarray(corner), file_format, exif=exif)
    sent = make_request({"image": Image.open(io.BytesIO(file))}).inputs["image"].image
    found, expected = (read_picture(content, 1000, IN_FULL).pixels for content in (sent, file))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 8


def test_values_are_sent_by_their_type(tmp_path: Path, caller: Caller) -> None:
    (tmp_path / "five.png").write_bytes(png())
    service = ScriptedService()
    with serving(service) as address:
        caller.infer(
            address,
            {
                "path": tmp_path / "five.png",
                "bytes": png(),
                "memory": memoryview(png()),
                "text": "five.png",
                "texts": ["five", "six"],
                "pair": ("five", "six"),
                "tensor": tensor_pb2.Tensor(dtype="DATA_TYPE_BF16", shape=[1], data=b"\x80\x3f"),
            },
        )
    [request] = service.requests
    sent = {name: value.WhichOneof("value") for name, value in request.inputs.items()}
    images, texts = dict.fromkeys(("path", "bytes", "memory"), "image"), dict.fromkeys(("texts", "pair"), "texts")
    assert sent == {**images, "text": "text", **texts, "tensor": "tensor"}
    assert {request.inputs[name].image for name in ("path", "bytes", "memory")} == {png()}
    assert [list(request.inputs[name].texts.values) for name in ("texts", "pair")] == [["five", "six"]] * 2
    assert request.inputs["text"].text == "five.png"  # a str is a text, whatever it looks like


@pytest.mark.parametrize(
    ("array", "dtype", "shape", "data"),
    [
        (np.array([[1, 2], [3, 4]], np.uint8), "UINT8", [2, 2], b"\1\2\3\4"),
        (np.array([[1, 2], [3, 4]], np.uint8).T, "UINT8", [2, 2], b"\1\3\2\4"),
        (np.arange(6, dtype=np.int8)[::2], "INT8", [3], b"\0\2\4"),
        (np.array([1], ">i4"), "INT32", [1], b"\1\0\0\0"),
        (np.array([1.0], ">f8"), "FP64", [1], b"\0\0\0\0\0\0\xf0\x3f"),
        (np.array(7, np.int64), "INT64", [], b"\7\0\0\0\0\0\0\0"),
        (np.float32(1), "FP32", [], b"\0\0\x80\x3f"),
        (np.array([True, False]), "BOOL", [2], b"\1\0"),
        (np.array([1], np.float16), "FP16", [1], b"\0\x3c"),
        (np.array([256], np.int16), "INT16", [1], b"\0\1"),
        (np.zeros((0, 3), np.float32), "FP32", [0, 3], b""),
    ],
    ids=[
        "as it lies",
        "transposed",
        "strided",
        "big-endian int",
        "big-endian float",
        "no dimensions",
        "a scalar",
        "bool",
        "half",
        "short",
        "empty",
    ],
)
def test_a_numpy_array_is_sent_row_major_and_little_endian(array: Any, dtype: str, shape: list[int], data: bytes) -> None:
    sent = make_request({"pixels": array}).inputs["pixels"].tensor
    assert (tensor_pb2.DataType.Name(sent.dtype), list(sent.shape), sent.data) == (f"DATA_TYPE_{dtype}", shape, data)


@pytest.mark.parametrize("value", [5, None, ["fve", 5], {"fve"}, object()], ids=["an int", "None", "a list", "a set", "an object"])
def test_a_value_of_another_type_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"inputs\['text'\] is a {type(value).__name__}; allowed: a pathlib.Path"):
        make_request({"text": value})


def test_a_dtype_that_the_contract_lacks_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"inputs\['pixels'\] has the dtype complex64; allowed: bool, uint8"):
        make_request({"pixels": np.zeros(2, np.complex64)})


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_arrives(caller: Caller) -> None:
    service = ScriptedService()
    with serving(service) as address:
        caller.infer(
            address,
            request_id="r1",
            ensemble="digits",
            version=3,
            policy="require_all",
            priority="high",
            top_k=2,
            member_predictions=True,
            explain=True,
            fusion_weights={"vision": 1.0},
        )
    assert service.requests == [
        ensemble_service_pb2.InferRequest(
            request_id="r1",
            ensemble="digits",
            version=3,
            inputs={"text": ensemble_service_pb2.Input(text="fve")},
            options={
                "policy": "POLICY_REQUIRE_ALL",
                "priority": "PRIORITY_HIGH",
                "top_k": 2,
                "member_predictions": True,
                "explain": True,
                "fusion_weights": {"vision": 1.0},
            },
        )
    ]


def test_an_option_is_set_for_every_field_of_the_contract() -> None:
    request = set(ensemble_service_pb2.InferRequest.DESCRIPTOR.fields_by_name) - {"inputs", "options"}
    options = set(ensemble_service_pb2.InferOptions.DESCRIPTOR.fields_by_name) - {"timeout"}
    assert set(twinfer.requests.Options.__annotations__) == request | options


def test_a_ready_request_is_sent_as_it_is(caller: Caller) -> None:
    service = ScriptedService()
    request = make_request({"text": "fve"}, request_id="r1", timeout=0.25)
    with serving(service) as address:
        caller.infer(address, request)
    assert service.requests == [request]
    assert request.options.timeout.nanos == 250_000_000
    with pytest.raises(TypeError, match="found besides: top_k"):
        caller.infer(address, request, top_k=2)


@pytest.mark.parametrize("option", ["policy", "priority"])
def test_an_unknown_choice_is_refused_here(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option} is 'urgent'; allowed: "):
        make_request({}, **{option: "urgent"})  # type: ignore[arg-type]


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_every_call_has_a_deadline(caller: Caller) -> None:
    service = ScriptedService()

    def check_health(request: bytes, context: Context) -> bytes:
        service.seconds_left.append(context.time_remaining())
        return b"\x08\x01"

    def add_health(server: grpc.Server) -> None:
        method: Any = grpc.unary_unary_rpc_method_handler(check_health)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method})])

    with serving(service, add_health) as address:
        caller.infer(address)
        caller.infer(address, timeout=5)
        caller.infer(address, client={"timeout": 7})
        caller.call("describe", address)
        caller.infer_many(address, [{"text": "fve"}])
        caller.infer_many(address, [{"text": "fve"}], stream_timeout=9)
        caller.call("infer_batch", address, [{"text": "fve"}])
        caller.call("infer_batch", address, [{"text": "fve"}], timeout=8)
        caller.call("wait_until_ready", address, 11)
    allowed = [30, 5, 7, 30, 3600, 9, 30, 8, 11]
    assert len(service.seconds_left) == len(allowed)
    for left, most in zip(service.seconds_left, allowed, strict=True):
        assert left is not None
        assert most - 3 < left <= most * 1.01  # gRPC sends three digits and rounds up


def test_a_call_past_its_deadline_says_so(caller: Caller) -> None:
    gate = threading.Event()

    def wait(request: ensemble_service_pb2.InferRequest, context: Context) -> ensemble_service_pb2.InferResponse:
        gate.wait(PATIENCE_SECONDS)
        return ANSWER

    with serving(ScriptedService(wait)) as address:
        with pytest.raises(errors.DeadlinePassed) as caught:
            caller.infer(address, timeout=0.1)
        gate.set()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


# --- errors -----------------------------------------------------------------------------------------------------------


def failing(code: grpc.StatusCode, text: str, metadata: tuple[tuple[str, str | bytes], ...] = (), times: int = 1_000) -> Script:
    """Fail the first calls, then answer."""
    left = iter(range(times))

    def script(request: ensemble_service_pb2.InferRequest, context: Context) -> ensemble_service_pb2.InferResponse:
        if next(left, None) is not None:
            context.set_trailing_metadata(metadata)
            context.abort(code, text)
        return ANSWER

    return script


def all_classes(root: type[errors.TwinferError]) -> Iterator[type[errors.TwinferError]]:
    for child in root.__subclasses__():
        yield child
        yield from all_classes(child)


WITH_REASON = [kind for kind in all_classes(errors.TwinferError) if kind.default_reason is not Reason.UNSPECIFIED]


@pytest.mark.parametrize("kind", WITH_REASON, ids=lambda kind: kind.__name__)
def test_a_reason_picks_the_class(kind: type[errors.TwinferError], caller: Caller) -> None:
    message = error_pb2.Error(
        code=kind.default_code.value[0],
        reason=f"REASON_{kind.default_reason}",
        member="vision",
        stage="STAGE_QUEUE",
        text="field, found, allowed",
    )
    script = failing(kind.default_code, "short", (("twinfer-error-bin", message.SerializeToString()),))
    with serving(ScriptedService(script)) as address, pytest.raises(errors.TwinferError) as caught:
        caller.infer(address)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.member) == (kind.default_code, kind.default_reason, "vision")
    assert (error.stage, error.text, str(error)) == (Stage.QUEUE, "field, found, allowed", "field, found, allowed")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.UnknownEnsemble),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.DATA_LOSS, errors.TwinferError),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
def test_a_bare_status_picks_the_class_by_its_code(code: grpc.StatusCode, kind: type[errors.TwinferError], caller: Caller) -> None:
    with serving(ScriptedService(failing(code, "from a proxy"))) as address, pytest.raises(kind) as caught:
        caller.infer(address)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason, caught.value.text) == (code, Reason.UNSPECIFIED, "from a proxy")


def test_a_damaged_error_message_leaves_the_status_to_speak(caller: Caller) -> None:
    script = failing(grpc.StatusCode.INTERNAL, "from the status", (("twinfer-error-bin", b"\xff"),))
    with serving(ScriptedService(script)) as address, pytest.raises(errors.InternalError, match="from the status"):
        caller.infer(address)


def test_a_reason_that_only_a_newer_server_knows_leaves_the_class_to_the_code(caller: Caller) -> None:
    message = error_pb2.Error(code=5, reason=99, text="new")  # type: ignore[arg-type]
    script = failing(grpc.StatusCode.NOT_FOUND, "", (("twinfer-error-bin", message.SerializeToString()),))
    with serving(ScriptedService(script)) as address, pytest.raises(errors.UnknownEnsemble, match="new") as caught:
        caller.infer(address)
    assert caught.value.reason is Reason.UNSPECIFIED


@pytest.mark.parametrize("method", ["infer", "infer_batch", "infer_many", "describe"])
def test_a_refused_connection_is_unavailable_and_says_where(caller: Caller, refused_address: str, method: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "infer": lambda: caller.infer(refused_address),
        "infer_batch": lambda: caller.call("infer_batch", refused_address, [{"text": "fve"}]),
        "infer_many": lambda: caller.infer_many(refused_address, [{"text": "fve"}]),
        "describe": lambda: caller.call("describe", refused_address),
    }
    with pytest.raises(errors.Unavailable, match=refused_address) as caught:
        calls[method]()
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.UNSPECIFIED)


def test_a_connection_that_takes_its_time_is_waited_for(caller: Caller) -> None:
    # Connected, and then nothing: what a busy server or a far one looks like until it has said its first word.
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(errors.DeadlinePassed):
        caller.infer(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)


def test_channel_options_of_the_caller_win(caller: Caller) -> None:
    options = [("grpc.max_receive_message_length", 10)]
    with serving(ScriptedService()) as address, pytest.raises(errors.Overloaded, match="larger than max"):
        caller.infer(address, client={"options": options})


# --- retries and sizes ------------------------------------------------------------------------------------------------

OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", (("grpc-retry-pushback-ms", "5"),))


def test_a_large_request_is_sent_again_after_the_pushback(caller: Caller) -> None:
    service = ScriptedService(failing(*OVERLOADED, times=1))
    with serving(service) as address:
        answer = caller.infer(address, {"image": bytes(2**20)}, client={"attempts": 4})
    assert answer.label == "five"
    assert [len(request.inputs["image"].image) for request in service.requests] == [2**20, 2**20]


def test_attempts_are_bounded_and_the_hint_is_handed_on(caller: Caller) -> None:
    service = ScriptedService(failing(*OVERLOADED))
    with serving(service) as address, pytest.raises(errors.Overloaded) as caught:
        caller.infer(address, client={"attempts": 3})
    assert len(service.requests) == 3
    assert caught.value.retry_after_seconds == 0.005


def test_one_attempt_is_one_attempt(caller: Caller) -> None:
    service = ScriptedService(failing(*OVERLOADED))
    with serving(service) as address, pytest.raises(errors.Overloaded):
        caller.infer(address, client={"attempts": 1})
    assert len(service.requests) == 1


def test_what_is_the_callers_fault_is_not_tried_again(caller: Caller) -> None:
    service = ScriptedService(failing(grpc.StatusCode.INVALID_ARGUMENT, "no"))
    with serving(service) as address, pytest.raises(errors.InvalidRequest):
        caller.infer(address, client={"attempts": 4})
    assert len(service.requests) == 1


def test_a_request_over_the_limit_is_never_sent(caller: Caller) -> None:
    service = ScriptedService()
    with (
        serving(service) as address,
        pytest.raises(errors.MessageTooLarge, match=r"has 33,554,4\d\d bytes; allowed: 33,554,432 \(max_message_bytes"),
    ):
        caller.infer(address, {"image": bytes(32 * 2**20)})
    assert service.requests == []


def test_messages_far_over_the_usual_4_mib_go_both_ways(caller: Caller) -> None:
    def echo(request: ensemble_service_pb2.InferRequest, context: Context) -> ensemble_service_pb2.InferResponse:
        return ensemble_service_pb2.InferResponse(prediction={"embedding": {"values": [0.0] * (2 * 2**20)}})

    with serving(ScriptedService(echo)) as address:
        answer = caller.infer(address, client={"max_message_bytes": 9 * 2**20})
    assert len(answer.embedding) == 2 * 2**20


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_call_with_an_outcome_per_row_in_their_order(caller: Caller) -> None:
    service = ScriptedService()
    own = make_request({"text": "2"}, request_id="mine", policy="require_all")
    with serving(service) as address:
        rows = iter([{"text": "0"}, {"text": "bad"}, own])
        outcomes: list[Outcome] = caller.call("infer_batch", address, rows, policy="best_effort")
    assert len(service.seconds_left) == 1
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(0, "0"), (1, "1"), (2, "mine")]
    assert [outcome.error and (type(outcome.error), outcome.error.text) for outcome in outcomes] == [
        None, (errors.InvalidInput, "found bad"), None
    ]  # fmt: skip
    assert outcomes[2].answer.label == "five"
    with pytest.raises(errors.InvalidInput):
        outcomes[1].answer  # noqa: B018
    best_effort, require_all = ensemble_service_pb2.POLICY_BEST_EFFORT, ensemble_service_pb2.POLICY_REQUIRE_ALL
    assert [request.options.policy for request in service.requests] == [best_effort, best_effort, require_all]


def test_a_batch_of_files_is_read_on_a_thread(caller: Caller, tmp_path: Path) -> None:
    (tmp_path / "five.png").write_bytes(b"pixels")
    service = ScriptedService()
    with serving(service) as address:
        caller.call("infer_batch", address, [{"text": "0"}, {"image": tmp_path / "five.png"}])
    assert service.requests[1].inputs["image"].image == b"pixels"


def test_a_batch_over_the_limit_is_not_sent(caller: Caller) -> None:
    service = ScriptedService()
    with serving(service) as address, pytest.raises(errors.MessageTooLarge, match="max_message_bytes"):
        caller.call("infer_batch", address, [{"image": bytes(20 * 2**20)}] * 2)
    assert service.requests == []


def test_a_batch_without_rows_is_no_call(caller: Caller, refused_address: str) -> None:
    assert caller.call("infer_batch", refused_address, []) == []


def test_a_batch_that_is_answered_in_part_is_an_error(caller: Caller) -> None:
    class Forgetful(ScriptedService):
        def BatchInfer(self, request: ensemble_service_pb2.BatchInferRequest, context: Context) -> Any:
            return ensemble_service_pb2.BatchInferResponse(results=[{"response": ANSWER}])

    with serving(Forgetful()) as address, pytest.raises(errors.InternalError, match="answered 1 rows of 2"):
        caller.call("infer_batch", address, texts(2))


# --- many rows --------------------------------------------------------------------------------------------------------


class Stream(ensemble_service_pb2_grpc.EnsembleServiceServicer):
    """Handles a stream as the test says."""

    def __init__(self, script: Callable[[Iterator[ensemble_service_pb2.InferRequest], Context], Iterator[Any]]) -> None:
        self.script = script

    def InferStream(
        self, request_iterator: Iterator[ensemble_service_pb2.InferStreamRequest], context: Context
    ) -> Iterator[ensemble_service_pb2.InferStreamResponse]:
        return self.script((message.request for message in request_iterator), context)


def texts(count: int) -> list[dict[str, str]]:
    return [{"text": str(number)} for number in range(count)]


def test_outcomes_come_as_the_server_is_done_with_them(caller: Caller) -> None:
    def backwards(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        yield from reversed([stream_answer(row.request_id) for row in rows])

    with serving(Stream(backwards)) as address:
        outcomes = caller.infer_many(address, texts(5))
    assert [(outcome.index, outcome.request_id) for outcome in outcomes] == [(n, str(n)) for n in (4, 3, 2, 1, 0)]
    assert {outcome.answer.label for outcome in outcomes} == {"five"}


def test_a_failed_row_is_an_outcome_and_the_stream_lives_on(caller: Caller) -> None:
    def odd_rows_fail(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        for row in rows:
            if int(row.inputs["text"].text) % 2:
                error = error_pb2.Error(code=3, reason="REASON_INVALID_INPUT", text="odd")
                yield ensemble_service_pb2.InferStreamResponse(request_id=row.request_id, error=error)
            else:
                yield stream_answer(row.request_id)

    with serving(Stream(odd_rows_fail)) as address:
        outcomes = caller.infer_many(address, texts(4))
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.InvalidInput] * 2
    with pytest.raises(errors.InvalidInput, match="odd"):
        _ = outcomes[1].answer


@pytest.mark.parametrize("window", [1, 7])
def test_no_more_rows_are_taken_than_the_window_holds(caller: Caller, window: int) -> None:
    rows_in_all = 40

    def whole_windows(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        waiting: list[str] = []
        for row in rows:
            waiting.append(row.request_id)
            if len(waiting) == window:
                # Nothing is answered until the window is full, so a client that filled less of it would hang.
                yield from map(stream_answer, waiting)
                waiting.clear()
        yield from map(stream_answer, waiting)

    seen: list[Outcome] = []
    taken_ahead: list[int] = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(rows_in_all):
            taken_ahead.append(number + 1 - len(seen))
            yield {"text": str(number)}

    with serving(Stream(whole_windows)) as address:
        # With answers in whole windows and one row taken for each that is yielded, the last windows close at the end.
        outcomes = caller.infer_many(address, rows(), seen, window=window, stream_timeout=PATIENCE_SECONDS)
    assert sorted(outcome.index for outcome in outcomes) == list(range(rows_in_all))
    assert max(taken_ahead) == window


def test_rows_carry_their_own_options_or_those_of_the_call(caller: Caller) -> None:
    service = ScriptedService()
    own = make_request({"text": "1"}, request_id="mine", timeout=2.5, policy="require_all")
    with serving(service) as address:
        outcomes = caller.infer_many(address, [{"text": "0"}, own], timeout=5, policy="best_effort")
    first, second = service.requests
    assert [outcome.request_id for outcome in outcomes] == ["0", "mine"]
    assert (first.options.timeout.seconds, first.options.policy) == (5, ensemble_service_pb2.POLICY_BEST_EFFORT)
    assert second == own
    assert own.request_id == "mine"


def test_a_row_without_a_timeout_gets_the_clients(caller: Caller) -> None:
    service = ScriptedService()
    request = make_request({"text": "0"})
    with serving(service) as address:
        caller.infer_many(address, [request])
    assert service.requests[0].options.timeout.seconds == 30
    assert request == make_request({"text": "0"})  # the caller's own message is left as it was


def test_a_row_over_the_limit_is_an_outcome_of_its_own(caller: Caller) -> None:
    service = ScriptedService()
    rows = [{"text": "0"}, {"image": bytes(33 * 2**20)}, {"text": "2"}]
    with serving(service) as address:
        # With a window of one, a row that is never answered must not hold up those behind it.
        outcomes = caller.infer_many(address, rows, window=1)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.MessageTooLarge, type(None)]
    assert len(service.requests) == 2


def test_what_the_callers_rows_raise_comes_out_as_it_is(caller: Caller, tmp_path: Path) -> None:
    rows = [{"text": "0"}, {"image": tmp_path / "absent.png"}]
    with serving(ScriptedService()) as address, pytest.raises(FileNotFoundError, match=r"absent\.png"):
        caller.infer_many(address, rows)


def test_two_rows_under_way_with_one_id_are_refused(caller: Caller) -> None:
    rows = [make_request({}, request_id="same"), make_request({}, request_id="same")]

    def never(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        list(rows)
        yield from ()

    with (
        serving(Stream(never)) as address,
        pytest.raises(ValueError, match="row 1 has the request_id 'same', as has row 0"),
    ):
        caller.infer_many(address, rows)


def test_a_stream_that_fails_raises_its_reason(caller: Caller) -> None:
    def drain(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        yield stream_answer(next(rows).request_id)
        message = error_pb2.Error(code=14, reason="REASON_DRAINING", text="shutting down")
        context.set_trailing_metadata((("twinfer-error-bin", message.SerializeToString()),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")

    seen: list[Outcome] = []
    with serving(Stream(drain)) as address, pytest.raises(errors.Draining, match="shutting down"):
        caller.infer_many(address, texts(200), seen, window=2)
    assert [outcome.index for outcome in seen] == [0]


def test_a_stream_that_ends_too_early_says_how_many_rows_are_unanswered(caller: Caller) -> None:
    def leave(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        yield stream_answer(next(rows).request_id)  # and the one or two behind it are left

    with (
        serving(Stream(leave)) as address,
        pytest.raises(errors.Unavailable, match=r"too early; rows unanswered: [12]\."),
    ):
        caller.infer_many(address, texts(200), window=2)


def test_an_answer_to_a_row_that_was_not_sent_is_an_error(caller: Caller) -> None:
    def invent(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        next(rows)
        yield stream_answer("invented")

    with serving(Stream(invent)) as address, pytest.raises(errors.InternalError, match="not sent: 'invented'"):
        caller.infer_many(address, texts(1))


def test_no_rows_are_no_outcomes(caller: Caller) -> None:
    with serving(ScriptedService()) as address:
        assert caller.infer_many(address, []) == []


def cancellable() -> tuple[Stream, threading.Event]:
    """A stream that answers every row at once, and an event that is set when its caller has left."""
    left = threading.Event()

    def script(rows: Iterator[ensemble_service_pb2.InferRequest], context: Context) -> Iterator[Any]:
        context.add_callback(left.set)
        yield from (stream_answer(row.request_id) for row in rows)

    return Stream(script), left


def test_leaving_the_loop_ends_the_stream() -> None:
    service, left = cancellable()
    with serving(service) as address, Client(address) as client:
        outcomes = client.infer_many(texts(200), window=2)
        assert next(outcomes).index == 0
        outcomes.close()
        assert left.wait(PATIENCE_SECONDS)


def test_leaving_the_async_loop_ends_the_stream() -> None:
    service, left = cancellable()

    async def run(address: str) -> None:
        async with AsyncClient(address) as client, aclosing(client.infer_many(texts(200), window=2)) as outcomes:
            assert (await anext(outcomes)).index == 0

    with serving(service) as address:
        asyncio.run(run(address))
        assert left.wait(PATIENCE_SECONDS)


def test_the_async_client_answers_rows_that_trickle() -> None:
    async def run(address: str) -> list[int]:
        answered = asyncio.Event()

        async def rows() -> AsyncIterator[dict[str, str]]:
            for number in range(3):
                answered.clear()
                yield {"text": str(number)}
                await answered.wait()  # the next row exists only once this one is answered

        indices = []
        async with AsyncClient(address) as client, asyncio.timeout(PATIENCE_SECONDS):
            async for outcome in client.infer_many(rows()):
                indices.append(outcome.index)
                answered.set()
        return indices

    with serving(ScriptedService()) as address:
        assert asyncio.run(run(address)) == [0, 1, 2]


# --- readiness --------------------------------------------------------------------------------------------------------


class ChangingHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Gives the scripted answers, the last of them for ever."""

    def __init__(self, *script: int | grpc.StatusCode) -> None:
        self.script = list(script)
        self.services: list[str] = []

    def Check(self, request: Any, context: Context) -> Any:
        self.services.append(request.service)
        status = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(status, grpc.StatusCode):
            context.abort(status, "scripted")
        return health_pb2.HealthCheckResponse(status=status)


def with_health(servicer: Any) -> Callable[[grpc.Server], object]:
    return lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def test_ready_is_what_the_health_service_says_is_serving(caller: Caller) -> None:
    servicer = health.HealthServicer()
    servicer.set("twinfer.v1.EnsembleService", SERVING)
    with serving(ScriptedService(), with_health(servicer)) as address:
        caller.call("wait_until_ready", address, PATIENCE_SECONDS)


def test_a_server_that_is_not_ready_yet_is_asked_again(caller: Caller) -> None:
    servicer = ChangingHealth(grpc.StatusCode.NOT_FOUND, NOT_SERVING, grpc.StatusCode.UNAVAILABLE, SERVING)
    with serving(ScriptedService(), with_health(servicer)) as address:
        caller.call("wait_until_ready", address, PATIENCE_SECONDS)
    assert servicer.services == ["twinfer.v1.EnsembleService"] * 4


def test_a_server_that_never_is_ready_ends_the_wait(caller: Caller) -> None:
    with (
        serving(ScriptedService(), with_health(ChangingHealth(NOT_SERVING))) as address,
        pytest.raises(errors.DeadlinePassed, match=r"not ready after 0\.2 s: it says that it is not serving"),
    ):
        caller.call("wait_until_ready", address, 0.2)


def test_a_server_that_is_not_there_ends_the_wait(caller: Caller, refused_address: str) -> None:
    with pytest.raises(errors.DeadlinePassed, match=r"not ready after 0\.2 s: nobody answered"):
        caller.call("wait_until_ready", refused_address, 0.2)


def test_a_server_without_a_health_service_is_not_waited_for(caller: Caller) -> None:
    with serving(ScriptedService()) as address, pytest.raises(errors.TwinferError) as caught:
        caller.call("wait_until_ready", address, PATIENCE_SECONDS)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
