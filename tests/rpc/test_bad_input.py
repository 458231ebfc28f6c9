"""Bad input: every fault has its own status that says field, found and allowed, and harms nobody else."""

import math
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.calls import GET_ENSEMBLE, INFER, Failure, call, connect, infer, stream
from tests.faults import EXPECTED, FUZZ, INPUT, NUMBERS, OPTION, SIZES, Case, mutated, png
from tests.gated import make_gated, tensor, write_gated
from tests.servers import running
from twinfer.v1 import ensemble_service_pb2 as pb
from twinfer.v1 import error_pb2, tensor_pb2

MAX_PIXELS = 10_000
MAX_TEXT_BYTES = 1_000


def with_input(name: str, value: pb.Input) -> pb.InferRequest:
    return pb.InferRequest(inputs={name: value})


def with_image(content: bytes) -> pb.InferRequest:
    return with_input("image", pb.Input(image=content))


def with_tensor(value: tensor_pb2.Tensor, name: str = "numbers") -> pb.InferRequest:
    return with_input(name, pb.Input(tensor=value))


def with_options(**options: object) -> pb.InferRequest:
    return make_gated(options=pb.InferOptions(**options))  # type: ignore[arg-type]


def with_weights(**weights: float) -> pb.InferRequest:
    return with_options(fusion_weights=weights)


LONG_NAME = "k" * 100_000
BAD_UTF8 = pb.InferRequest(request_id="xy").SerializeToString().replace(b"xy", b"\xff\xfe")

CASES = [
    Case("no inputs at all", pb.InferRequest(), "MISSING_INPUT", ("inputs", "none", "numbers", "image", "text")),
    Case(
        "a missing input under REQUIRE_ALL",
        with_options(policy=pb.POLICY_REQUIRE_ALL),
        "MISSING_INPUT", ("inputs", "image", "text", "missing", "REQUIRE_ALL"),
    ),
    Case(
        "an unknown input name",
        with_input("imgae", pb.Input(text="x")),
        "UNKNOWN_INPUT", ("inputs['imgae']", "numbers", "image", "text"),
    ),
    Case(
        "an unknown input name of 100 kB",
        with_input(LONG_NAME, pb.Input(text="x")),
        "UNKNOWN_INPUT", ("inputs['kkkk", "...", "image"),
    ),
    Case(
        "an unknown input name in many languages",
        with_input("图像" * 5_000 + "\U0001f4f7", pb.Input(text="x")),
        "UNKNOWN_INPUT", ("inputs['图像", "...", "image"),
    ),
    Case("no value in an input", with_input("image", pb.Input()), INPUT, ("inputs['image']", "no value", "tensor")),
    Case("empty image bytes", with_image(b""), INPUT, ("inputs['image']", "no bytes", "PNG")),
    Case("a truncated image", with_image(png(64, 64)[:60]), INPUT, ("inputs['image']", "truncated", "whole image")),
    Case("the first bytes of an image", with_image(png(9, 9)[:10]), INPUT, ("inputs['image']", "10 bytes", "PNG")),
    Case("bytes that are no image", with_image(b"%PDF-1.7 no"), INPUT, ("inputs['image']", "11 bytes", "JPEG")),
    Case(
        "an image over the pixel limit",
        with_image(png(101, 100)),
        INPUT, ("inputs['image']", "101 x 100", f"at most {MAX_PIXELS} pixels"),
    ),
    Case(
        "pixels over the pixel limit",
        with_tensor(tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[100, 101, 1], data=bytes(10_100)), "image"),
        INPUT, ("inputs['image']", "101 x 100", f"at most {MAX_PIXELS} pixels"),
    ),
    Case(
        "a text over the limit",
        with_input("text", pb.Input(text="é" * 501)),
        INPUT, ("inputs['text']", "1002 bytes", f"at most {MAX_TEXT_BYTES}"),
    ),
    Case("an empty text", with_input("text", pb.Input(text="")), INPUT, ("inputs['text']", "''", "at least one")),
    Case("no texts", with_input("text", pb.Input(texts={})), INPUT, ("inputs['text'].texts", "no text", "at least one")),
    Case("more texts than one", with_input("text", pb.Input(texts={"values": "ab"})), INPUT, ("text", "2 texts", "1 to 1")),
    Case("texts where an image belongs", with_input("image", pb.Input(texts={"values": "a"})), INPUT, ("image", "1 texts", "PNG")),
    Case("a text where an image belongs", with_input("image", pb.Input(text="二")), INPUT, ("image", "'二'", "PNG")),
    Case("an image where a text belongs", with_input("text", pb.Input(image=b"abc")), INPUT, ("text", "3 bytes")),
    Case("a text where a tensor belongs", with_input("numbers", pb.Input(text="7")), INPUT, (NUMBERS, "'7'", "[3]")),
    Case(
        "a wrong dtype",
        with_tensor(tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT32, shape=[3], data=bytes(12))),
        INPUT, (NUMBERS, "int32", "float32"),
    ),
    Case("an unset dtype", with_tensor(tensor([1, 2, 3], dtype=0)), INPUT, (NUMBERS, "dtype", "none", "DATA_TYPE_FP32")),
    Case("an unknown dtype", with_tensor(tensor([1, 2, 3], dtype=99)), INPUT, (NUMBERS, "dtype", "99", "DATA_TYPE_FP32")),
    Case("a wrong rank", with_tensor(tensor([1, 2, 3], [1, 3])), INPUT, (NUMBERS, "[1, 3]", "[3]")),
    Case("a wrong shape", with_tensor(tensor([1, 2])), INPUT, (NUMBERS, "[2]", "[3]")),
    Case("a scalar", with_tensor(tensor([1], [])), INPUT, (NUMBERS, "[]", "[3]")),
    Case("too many dimensions", with_tensor(tensor([1], [1] * 99)), INPUT, (NUMBERS, "shape", "99", "at most 16")),
    Case("more bytes than the shape says", with_tensor(tensor([1, 2, 3, 4], [3])), INPUT, (NUMBERS, "16 bytes", "12")),
    Case("fewer bytes than the shape says", with_tensor(tensor([], [3])), INPUT, (NUMBERS, "0 bytes", "12")),
    Case("a negative dimension", with_tensor(tensor([1, 2, 3], [-3])), INPUT, (NUMBERS, "[-3]", "at least 0")),
    Case(
        "two negative dimensions",
        with_tensor(tensor([1, 2, 3], [-3, -1])),
        INPUT, (NUMBERS, "[-3, -1]", "at least 0"),
    ),
    Case(
        "absurd dimensions",
        with_tensor(tensor([1, 2, 3], [2**62, 2**62])),
        INPUT, (NUMBERS, str(2**62), "at most", "bytes"),
    ),
    Case(
        "absurd dimensions of nothing",
        with_tensor(tensor([], [2**62, 2**62, 0])),
        INPUT, (NUMBERS, str(2**62), "at most", "bytes"),
    ),
    Case("no elements", with_tensor(tensor([], [0])), INPUT, (NUMBERS, "[0]", "[3]")),
    Case("NaN in a tensor", with_tensor(tensor([1, math.nan, 3])), INPUT, (NUMBERS, "NaN", "finite")),
    Case(
        "a bool that is neither 0 nor 1",
        with_tensor(tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_BOOL, shape=[3], data=b"\0\2\0")),
        INPUT, (NUMBERS, "neither 0 nor 1"),
    ),
    Case("token ids outside the vocabulary", with_tensor(
        tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT64, shape=[1], data=b"\xff" * 7 + b"\x7f"), "text"),
        INPUT, ("inputs['text']", f"token id {2**63 - 1}", "vocabulary"),
    ),
    Case("a NaN weight", with_weights(numbers=math.nan), OPTION, ("fusion_weights['numbers']", "nan", "0 to 1e9")),
    Case("an infinite weight", with_weights(numbers=math.inf), OPTION, ("fusion_weights['numbers']", "inf", "0 to 1e9")),
    Case("a negative weight", with_weights(numbers=-0.5), OPTION, ("fusion_weights['numbers']", "-0.5", "0 to 1e9")),
    Case("weights that are all zero", with_weights(numbers=0.0), OPTION, ("fusion_weights", "all", "above 0")),
    Case("an unknown member in weights", with_weights(visoin=1.0), "UNKNOWN_MEMBER", ("fusion_weights['visoin']", "picture")),
    Case("a 100 kB member in weights", with_weights(**{LONG_NAME: 1.0}), "UNKNOWN_MEMBER", ("fusion_weights['kkk", "...")),
    Case("an unknown policy", with_options(policy=42), OPTION, ("options.policy", "42", "0, 1, 2")),
    Case("an unknown priority", with_options(priority=-1), OPTION, ("options.priority", "-1", "0, 1, 2, 3")),
    Case("a negative top_k", with_options(top_k=-1), OPTION, ("options.top_k", "-1", "0 to 3")),
    Case("a top_k above the classes", with_options(top_k=4), OPTION, ("options.top_k", "4", "0 to 3")),
    Case("a timeout of 0", with_options(timeout={}), OPTION, ("options.timeout", "0", "more than 0")),
    Case("a negative timeout", with_options(timeout={"seconds": -2}), OPTION, ("options.timeout", "-2", "more than 0")),
    Case(
        "an unknown ensemble",
        pb.InferRequest(ensemble="digits", inputs=make_gated().inputs),
        "UNKNOWN_ENSEMBLE", ("'digits'", "'gated' version 7"), grpc.StatusCode.NOT_FOUND,
    ),
    Case(
        "an unknown version",
        pb.InferRequest(version=-(2**63), inputs=make_gated().inputs),
        "UNKNOWN_ENSEMBLE", (str(-(2**63)), "'gated' version 7"), grpc.StatusCode.NOT_FOUND,
    ),
    Case("a request id that is too long", make_gated(request_id="é" * 129), OPTION, ("request_id", "258 bytes", "256")),
    Case(
        "a request id of megabytes",
        make_gated(request_id="x" * 5_000_000),
        OPTION, ("request_id", "5000000 bytes", "256"),
    ),
    Case(
        "bytes that do not parse",
        pb.InferRequest(), "MALFORMED_MESSAGE", ("4 bytes do not parse", "twinfer.v1.Infer"), message=b"\xff\xff\xff\xff",
    ),
    Case(
        "bad UTF-8 in a text field",
        pb.InferRequest(), "MALFORMED_MESSAGE", ("bytes do not parse", "twinfer.v1.Infer"), message=BAD_UTF8,
    ),
    Case(
        "megabytes that do not parse",
        pb.InferRequest(), "MALFORMED_MESSAGE", ("1000000 bytes do not parse",), message=b"\xff" * 1_000_000,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_gated(tmp_path_factory.mktemp("bad") / "gated")
    with running(folder, trust_code=True, max_image_pixels=MAX_PIXELS, max_text_bytes=MAX_TEXT_BYTES) as server:
        yield server.address


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with connect(address) as channel:
        yield channel


def check_error(error: error_pb2.Error, case: Case[pb.InferRequest]) -> None:
    assert error.code == case.code.value[0]
    assert error_pb2.Reason.Name(error.reason) == f"REASON_{case.reason}"
    assert error_pb2.Stage.Name(error.stage) == f"STAGE_{case.stage}"
    assert [word for word in case.words if word not in error.text] == []
    assert len(error.text) <= 1000


def check_good_row(channel: grpc.Channel) -> None:
    answer = infer(channel, make_gated())
    assert isinstance(answer, pb.InferResponse)
    assert answer.prediction.classification.classes[0].label == "c"


@pytest.mark.parametrize("case", CASES, ids=[case.name("is refused") for case in CASES])
def test_infer(channel: grpc.Channel, case: Case[pb.InferRequest]) -> None:
    found = call(channel, INFER, case.message or case.request.SerializeToString())
    assert isinstance(found, Failure)
    assert found.code is case.code
    assert [word for word in case.words if word not in found.details] == []
    check_error(found.error, case)
    check_good_row(channel)


@pytest.mark.parametrize("case", CASES, ids=[case.name("gets its own error") for case in CASES])
def test_infer_stream(channel: grpc.Channel, case: Case[pb.InferRequest]) -> None:
    bad = pb.InferRequest.FromString(case.request.SerializeToString())
    bad.request_id = bad.request_id or "bad"
    broken = pb.InferStreamRequest(request=bad).SerializeToString()
    if case.message:  # as the field `request`, so that the fault lies inside the stream's own message
        broken = b"\x0a" + _varint(len(case.message)) + case.message
    good = pb.InferStreamRequest(request=make_gated(request_id="good")).SerializeToString()
    answers = [pb.InferStreamResponse.FromString(reply) for reply in stream(channel, [good, broken, good])]
    failed = [answer for answer in answers if answer.HasField("error")]
    assert [answer.response.request_id for answer in answers if answer.HasField("response")] == ["good", "good"]
    assert len(failed) == 1
    assert failed[0].request_id == ("" if case.message else bad.request_id[:256])
    assert failed[0].error.code == case.code.value[0]
    assert failed[0].error.reason == error_pb2.Reason.Value(f"REASON_{case.reason}")
    assert failed[0].error.stage == error_pb2.Stage.Value(f"STAGE_{case.stage}")
    if not case.message:
        check_error(failed[0].error, case)


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE"),
        (pb.GetEnsembleRequest(ensemble="x" * 100_000).SerializeToString(), grpc.StatusCode.NOT_FOUND, "UNKNOWN_ENSEMBLE"),
        (pb.GetEnsembleRequest(version=8).SerializeToString(), grpc.StatusCode.NOT_FOUND, "UNKNOWN_ENSEMBLE"),
    ],
    ids=["bytes that do not parse are refused", "an unknown name is refused", "an unknown version is refused"],
)
def test_get_ensemble(channel: grpc.Channel, message: bytes, code: grpc.StatusCode, reason: str) -> None:
    found = call(channel, GET_ENSEMBLE, message)
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (code, reason)


@pytest.mark.parametrize(
    "timeout",
    [{"seconds": 2**63 - 1, "nanos": 2**31 - 1}, {"seconds": 10, "nanos": -1}],
    ids=["an absurdly long one counts as the server's own", "one with odd nanoseconds is what it adds up to"],
)
def test_a_timeout(channel: grpc.Channel, timeout: dict[str, int]) -> None:
    assert isinstance(infer(channel, with_options(timeout=timeout)), pb.InferResponse)


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    found = call(channel, "/twinfer.v1.EnsembleService/Learn", b"")
    assert isinstance(found, Failure)
    assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_fields_of_a_newer_contract_are_passed_over(channel: grpc.Channel) -> None:
    newer = make_gated().SerializeToString() + b"\xaa\x3e\x03new"  # field 997, three bytes
    assert isinstance(call(channel, INFER, newer), bytes)


# --- fuzz -------------------------------------------------------------------------------------------------------------

TENSORS = st.builds(
    tensor_pb2.Tensor,
    dtype=st.integers(-1, 12),
    shape=st.lists(SIZES, max_size=5),
    data=st.binary(max_size=48),
)
INPUTS = st.one_of(
    st.builds(pb.Input, tensor=TENSORS),
    st.builds(pb.Input, text=st.text(max_size=40)),
    st.builds(pb.Input, image=st.one_of(st.binary(max_size=80), st.just(png(3, 2)))),
    st.just(pb.Input()),
)
OPTIONS = st.builds(
    pb.InferOptions,
    policy=st.integers(-1, 4),
    priority=st.integers(-1, 5),
    top_k=st.integers(-1, 4),
    member_predictions=st.booleans(),
    fusion_weights=st.dictionaries(st.sampled_from(["numbers", "picture", "words", "x"]), st.floats(), max_size=2),
)
REQUESTS = st.builds(
    pb.InferRequest,
    ensemble=st.sampled_from(["", "gated", "other"]),
    version=st.sampled_from([0, 7, 8]),
    request_id=st.text(max_size=10),
    inputs=st.dictionaries(st.sampled_from(["numbers", "image", "text", "x"]), INPUTS, max_size=3),
    options=st.one_of(st.none(), OPTIONS),
)
GOOD = make_gated(1.0, "id", pb.InferOptions(top_k=2), {"text": pb.Input(text="two"), "image": pb.Input(image=png(2, 2))})


def check_canonical(found: bytes | Failure) -> None:
    if isinstance(found, Failure):
        assert found.code in EXPECTED, found
        assert found.error.code == found.code.value[0]


@FUZZ
@given(message=st.one_of(st.binary(max_size=300), mutated(GOOD), REQUESTS.map(pb.InferRequest.SerializeToString)))
def test_whatever_is_sent_to_infer_ends_with_a_canonical_status(channel: grpc.Channel, message: bytes) -> None:
    check_canonical(call(channel, INFER, message))


@FUZZ
@given(message=st.one_of(st.binary(max_size=300), mutated(pb.GetEnsembleRequest(ensemble="gated", version=7))))
def test_whatever_is_sent_to_get_ensemble_ends_with_a_canonical_status(channel: grpc.Channel, message: bytes) -> None:
    check_canonical(call(channel, GET_ENSEMBLE, message))


@FUZZ
@given(
    messages=st.lists(
        st.one_of(
            st.binary(max_size=300),
            mutated(pb.InferStreamRequest(request=GOOD)),
            REQUESTS.map(lambda request: pb.InferStreamRequest(request=request).SerializeToString()),
        ),
        max_size=5,
    )
)
def test_whatever_is_sent_over_a_stream_gets_one_answer_each(channel: grpc.Channel, messages: list[bytes]) -> None:
    answers = [pb.InferStreamResponse.FromString(reply) for reply in stream(channel, messages)]
    assert len(answers) == len(messages)
    for answer in answers:
        assert answer.WhichOneof("result") in ("response", "error")
        assert answer.error.code in {0, *(code.value[0] for code in EXPECTED)}


def test_after_all_that_the_server_answers_as_ever(channel: grpc.Channel) -> None:
    check_good_row(channel)
