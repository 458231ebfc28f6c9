"""Bad input of the Open Inference Protocol: every fault has its own status, and whatever is sent harms nobody else."""

from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oip
from tests.calls import Failure, call
from tests.faults import EXPECTED, FUZZ, INPUT, NUMBERS, OPTION, SIZES, Case, mutated, png
from twinfer_server.rpc.oip import grpc_service_pb2 as pb


def ask(*inputs: oip.Input, **rest: Any) -> pb.ModelInferRequest:
    return oip.request("gated", inputs, **rest)


def numbers(shape: list[int], data: bytes | None, datatype: str = "FP32", **parameters: Any) -> pb.ModelInferRequest:
    return ask((oip.tensor("numbers", datatype, shape, **parameters), data))


def typed(*shape: int, datatype: str = "FP32", **lists: Any) -> oip.Input:
    return oip.tensor("numbers", datatype, shape, pb.InferTensorContents(**lists)), None


def text(shape: list[int], data: bytes, datatype: str = "BYTES") -> pb.ModelInferRequest:
    return ask((oip.tensor("text", datatype, shape), data))


def base64_text(data: bytes) -> oip.Input:
    return oip.tensor("text", "BYTES", [1, 1], pb.InferTensorContents(bytes_contents=[data]), content_type="base64"), None


def options(**parameters: Any) -> pb.ModelInferRequest:
    return ask(GOOD_NUMBERS, parameters=parameters)


GOOD_NUMBERS = oip.raw("numbers", "FP32", [[0, 0, 9]])
TYPED = typed(1, 3, fp32_contents=[0, 0, 9])
TWO = oip.texts("text", "two")
ONE_BAD_OF_THREE = oip.raw("numbers", "FP32", [[0, 0, 0], [0, np.nan, 0], [0, 0, 0]])
ONE_TENSOR_OF_TWO = pb.ModelInferRequest(model_name="gated", inputs=[GOOD_NUMBERS[0]], raw_input_contents=[bytes(12), b""])

BEST, SHARED = oip.wanted("degraded", classification=1), oip.wanted("degraded", shared_memory_region="r")

CASES = [
    Case("no inputs", ask(), "MISSING_INPUT", ("inputs", "numbers")),
    Case("an unknown input", ask(oip.raw("x", "FP32", [[1]])), "UNKNOWN_INPUT", ("inputs['x']", "numbers", "image", "text")),
    Case("many unknown inputs", ask(*[(oip.Tensor(name=str(n)), b"") for n in range(100_000)]), "UNKNOWN_INPUT", ("inputs['0']",)),
    Case("an input twice", ask(GOOD_NUMBERS, GOOD_NUMBERS), INPUT, (NUMBERS, "twice")),
    Case("an input that is not the member's", oip.request("gated.words", [GOOD_NUMBERS]), "UNKNOWN_INPUT", (NUMBERS, "text")),
    Case("an unknown datatype", numbers([1, 3], bytes(12), "FP31"), INPUT, (NUMBERS, "datatype", "'FP31'", "BF16", "BYTES")),
    Case("no datatype", numbers([1, 3], bytes(12), ""), INPUT, (NUMBERS, "datatype", "''")),
    Case("another datatype", numbers([1, 3], bytes(24), "FP64"), INPUT, ("numbers", "float64", "float32")),
    Case("no shape", numbers([], b""), INPUT, (NUMBERS, "shape", "0 dimensions", "1 to 16")),
    Case("too many dimensions", numbers([1] * 17, bytes(4)), INPUT, (NUMBERS, "shape", "17 dimensions", "at most 16")),
    Case("a negative size", numbers([1, -3], bytes(12)), INPUT, (NUMBERS, "[1, -3]", "at least 0")),
    Case("absurd sizes", numbers([2**62, 2**62], bytes(12)), INPUT, (NUMBERS, str(2**62), "bytes in all")),
    Case("absurd sizes of nothing", numbers([0, 2**62, 2**62], b""), INPUT, (NUMBERS, str(2**62), "bytes in all")),
    Case("no requests", numbers([0, 3], b""), INPUT, ("batches of {'numbers': 0}", "1 to 4")),
    Case("too many requests", numbers([5, 3], bytes(60)), INPUT, ("batches of {'numbers': 5}", "1 to 4")),
    Case("differing batches", ask(GOOD_NUMBERS, oip.texts("text", "a", "b")), INPUT, ("'numbers': 1, 'text': 2", "as many")),
    Case("a wrong shape", numbers([1, 2], bytes(8)), INPUT, ("numbers", "[2]", "[3]")),
    Case("too few bytes", numbers([1, 3], bytes(11)), INPUT, (NUMBERS, "11 bytes", "12, as FP32 [1, 3] says")),
    Case("one bad request of three", ask(ONE_BAD_OF_THREE), INPUT, ("request 1: ", "NaN")),
    Case("a bool that is neither", numbers([1, 3], b"\0\2\1", "BOOL"), INPUT, (NUMBERS, "neither 0 nor 1")),
    Case("BYTES for numbers", numbers([1, 3], oip.join(b"1", b"2", b"3"), "BYTES"), INPUT, (NUMBERS, "BYTES", "numbers")),
    Case("BYTES without lengths", text([1, 1], b"two"), INPUT, ("inputs['text']", "element 0 ends at byte 4", "at most 3")),
    Case("BYTES cut short", text([1, 1], oip.join(b"three")[:-1]), INPUT, ("element 0 ends at byte 9", "at most 8")),
    Case("BYTES of gigabytes", text([1, 1], b"\xff\xff\xff\xffab"), INPUT, ("element 0 ends at byte 4294967299", "at most 6")),
    Case("bytes behind BYTES", text([1, 1], oip.join(b"two") + b"x"), INPUT, ("1 bytes behind the last element",)),
    Case("no UTF-8", text([1, 1], oip.join(b"\xff\xfe")), INPUT, ("inputs['text']", "no UTF-8")),
    Case("no text for a request", text([1, 0], b""), INPUT, ("inputs['text']", "no text")),
    Case("two texts for a request", text([1, 2], oip.join(b"one", b"two")), INPUT, ("text", "2 texts", "1 to 1")),
    Case("two images for a request", ask(oip.texts("image", b"x", b"y", each=2)), INPUT, ("2 images for a batch of 1",)),
    Case("no image", ask(oip.texts("image", b"not a picture")), INPUT, ("inputs['image']", "13 bytes", "PNG")),
    Case("token ids as unsigned", text([1, 1], bytes(4), "UINT32"), INPUT, ("text", "uint32", "int32 or int64")),
    Case("raw bytes beside typed elements", ask((TYPED[0], bytes(12))), INPUT, (NUMBERS, "contents", "one or the other")),
    Case("typed elements in one of two inputs", ask(TWO, TYPED), INPUT, ("raw_input_contents", "found 1", "2")),
    Case("more raw bytes than inputs", ONE_TENSOR_OF_TWO, INPUT, ("raw_input_contents", "found 2", "1")),
    Case("neither raw bytes nor elements", numbers([1, 3], None), INPUT, (NUMBERS, "0 elements", "3")),
    Case("another list", ask(typed(1, 3, fp64_contents=[0, 0, 9])), INPUT, ("fp64_contents", "fp32_contents", "FP32")),
    Case("two lists", ask(typed(1, 3, fp32_contents=[0, 0, 9], fp64_contents=[1])), INPUT, ("fp64_contents",)),
    Case("elements of FP16", ask(typed(1, 1, datatype="FP16", fp32_contents=[1])), INPUT, ("FP16", "raw_input_contents")),
    Case("too few elements", ask(typed(1, 3, fp32_contents=[1])), INPUT, ("1 elements", "3")),
    Case("a large element", ask(typed(1, 1, datatype="INT8", int_contents=[128])), INPUT, ("128", "-128 to 127", "INT8")),
    Case("a large unsigned one", ask(typed(1, 1, datatype="UINT8", uint_contents=[256])), INPUT, ("256", "0 to 255", "UINT8")),
    Case("an input in shared memory", numbers([1, 3], None, shared_memory_region="r"), OPTION, ("shared_memory_region", "'r'")),
    Case("no base64", ask(base64_text(b"two!")), INPUT, ("inputs['text']", "no base64", "as content_type says")),
    Case("base64 of no UTF-8", ask(base64_text(b"//4=")), INPUT, ("inputs['text']", "no UTF-8")),
    Case("an unknown output", ask(GOOD_NUMBERS, outputs=["scores"]), OPTION, ("outputs['scores']", "prediction")),
    Case("an output twice", ask(GOOD_NUMBERS, outputs=["degraded"] * 2), OPTION, ("outputs['degraded']", "twice")),
    Case("an output's best classes", ask(GOOD_NUMBERS, outputs=[BEST]), OPTION, ("come whole",)),
    Case("an output in shared memory", ask(GOOD_NUMBERS, outputs=[SHARED]), OPTION, ("'r'",)),
    Case("too many parameters", options(**{f"triton_{n}": n for n in range(65)}), OPTION, ("65", "at most 64")),
    Case("a sequence", options(sequence_id=3), OPTION, ("'sequence_id'", "'3'", "no sequence")),
    Case("a sequence by name", options(sequence_id="s"), OPTION, ("'sequence_id'", "'s'", "no sequence")),
    Case("a negative timeout", options(timeout=-1), OPTION, ("timeout", "-1", "at least 0")),
    Case("a timeout in words", options(timeout="soon"), OPTION, ("timeout", "string_param")),
    Case("a priority that is a fact", options(priority=True), OPTION, ("priority", "bool_param")),
    Case("an empty priority", options(priority=pb.InferParameter()), OPTION, ("priority", "no value")),
    Case("an unknown policy", options(policy="HOPE"), OPTION, ("policy", "'HOPE'", "BEST_EFFORT")),
    Case("a policy that is a number", options(policy=1), OPTION, ("policy", "int64_param")),
    Case("a member's policy", oip.request("gated.words", [TWO], parameters={"policy": "HOPE"}), OPTION, ("policy", "the ensemble")),
    Case("an id that is too long", ask(GOOD_NUMBERS, request_id="é" * 129), OPTION, ("id", "258 bytes", "256")),
]  # fmt: skip


def check_good_request(channel: grpc.Channel) -> None:
    response = oip.infer(channel, ask(GOOD_NUMBERS))
    assert isinstance(response, pb.ModelInferResponse), response
    assert int(oip.read(response)["prediction"].argmax()) == 2


@pytest.mark.parametrize("case", CASES, ids=[case.name("is refused") for case in CASES])
def test_infer(channel: grpc.Channel, case: Case[pb.ModelInferRequest]) -> None:
    found = oip.infer(channel, case.request)
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, case.reason)
    assert [word for word in case.words if word not in found.details] == []
    check_good_request(channel)


@pytest.mark.parametrize("case", CASES, ids=[case.name("gets its own error") for case in CASES])
def test_infer_stream(channel: grpc.Channel, case: Case[pb.ModelInferRequest]) -> None:
    bad = pb.ModelInferRequest.FromString(case.request.SerializeToString())
    bad.id = bad.id or "bad"
    messages = [ask(GOOD_NUMBERS, request_id="good"), bad, ask(GOOD_NUMBERS, request_id="good")]
    replies = oip.stream(channel, [message.SerializeToString() for message in messages])
    answers = [pb.ModelStreamInferResponse.FromString(reply) for reply in replies]
    assert [answer.infer_response.id for answer in answers] == ["good", bad.id[:256], "good"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert answers[1].error_message.startswith("[INVALID_ARGUMENT] ")
    assert [word for word in case.words if word not in answers[1].error_message] == []
    assert not answers[1].infer_response.outputs


METHODS: dict[str, Any] = {
    method.name: getattr(pb, method.input_type.name) for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
}
UNARY = sorted(METHODS.keys() - {"ModelStreamInfer"})


@pytest.mark.parametrize("method", UNARY)
def test_bytes_that_do_not_parse_are_refused(channel: grpc.Channel, method: str) -> None:
    found = call(channel, f"{oip.SERVICE}/{method}", b"\xff\xff\xff\xff")
    assert isinstance(found, Failure)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert f"inference.{METHODS[method].DESCRIPTOR.name}" in found.details


# --- fuzz ----------------------------------------------------------------------------------------------------------------

ENDS = EXPECTED | {grpc.StatusCode.UNIMPLEMENTED}
NOT_FINITE = "NOT_FINITE"
"""What the member says of its own answer to logits so far apart that their difference is infinite."""

NAMES = st.sampled_from(["numbers", "image", "text", "x"])
DATATYPES = st.sampled_from(
    ["FP32", "FP64", "FP16", "BF16", "INT64", "INT32", "INT8", "UINT8", "UINT64", "BOOL", "BYTES", "", "FP31"]
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "policy", "sequence_id", "classification", "shared_memory_region", "triton_x"]),
    st.one_of(
        st.builds(pb.InferParameter, int64_param=st.one_of(st.integers(-2, 3), st.just(2**63 - 1))),
        st.builds(pb.InferParameter, uint64_param=st.sampled_from([0, 1, 2**64 - 1])),
        st.builds(pb.InferParameter, string_param=st.sampled_from(["", "BEST_EFFORT", "é", "region"])),
        st.builds(pb.InferParameter, bool_param=st.booleans()),
        st.builds(pb.InferParameter, double_param=st.floats()),
        st.just(pb.InferParameter()),
    ),
    max_size=2,
)  # fmt: skip
CONTENTS = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=1),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    uint_contents=st.lists(st.integers(0, 2**32 - 1), max_size=1),
    fp32_contents=st.lists(st.floats(width=32), max_size=3),
    bytes_contents=st.lists(st.binary(max_size=5), max_size=2),
)
TENSORS = st.builds(
    oip.Tensor,
    name=NAMES,
    datatype=DATATYPES,
    shape=st.lists(SIZES, max_size=5),
    parameters=st.one_of(st.just({}), PARAMETERS),
    contents=st.one_of(st.none(), CONTENTS),
)
RAW = st.one_of(st.binary(max_size=48), st.just(oip.join(b"two")), st.just(oip.join(png(3, 2))), st.just(GOOD_NUMBERS[1]))
OUTPUTS = st.builds(
    pb.ModelInferRequest.InferRequestedOutputTensor,
    name=st.sampled_from(["prediction", "degraded", "words.prediction", "state", "x"]),
    parameters=st.one_of(st.just({}), PARAMETERS),
)
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["gated", "gated", "gated", "gated.words", "x"]),
    model_version=st.sampled_from(["", "7", "x"]),
    id=st.text(max_size=10),
    parameters=st.one_of(st.just({}), PARAMETERS),
    inputs=st.lists(TENSORS, max_size=3),
    outputs=st.lists(OUTPUTS, max_size=2),
    raw_input_contents=st.lists(RAW, max_size=3),
)
GOOD = ask(
    GOOD_NUMBERS, oip.texts("text", "two"), oip.texts("image", png(2, 2)),
    outputs=["prediction", "words.state"], request_id="id",
    parameters={"timeout": 10**7, "priority": 1},
)  # fmt: skip
MESSAGES = st.one_of(
    st.binary(max_size=300),
    mutated(GOOD),
    mutated(ask(typed(2, 3, fp32_contents=[0, 0, 9] * 2))),
    REQUESTS.map(pb.ModelInferRequest.SerializeToString),
)


@FUZZ
@given(message=MESSAGES)
def test_whatever_is_sent_to_infer_ends_with_a_canonical_status(channel: grpc.Channel, message: bytes) -> None:
    found = call(channel, oip.MODEL_INFER, message)
    if isinstance(found, Failure):
        assert found.code in ENDS or found.reason == NOT_FINITE, found
        assert found.error.code == found.code.value[0]
    else:
        response = pb.ModelInferResponse.FromString(found)
        assert len(response.outputs) == len(response.raw_output_contents)


@FUZZ
@given(messages=st.lists(MESSAGES, max_size=5))
def test_whatever_is_sent_over_a_stream_gets_one_answer_each(channel: grpc.Channel, messages: list[bytes]) -> None:
    answers = [pb.ModelStreamInferResponse.FromString(reply) for reply in oip.stream(channel, messages)]
    assert len(answers) == len(messages)
    for answer in answers:
        assert bool(answer.error_message) != bool(answer.infer_response.outputs)
        assert answer.infer_response.parameters["triton_final_response"].bool_param
        code = answer.error_message.partition("]")[0].removeprefix("[")
        assert code in {"", *(status.name for status in ENDS)} or "NaN or an infinity" in answer.error_message, answer


@settings(FUZZ, max_examples=300)
@given(method=st.sampled_from(UNARY), message=st.binary(max_size=60))
def test_whatever_is_sent_to_any_method_ends_with_a_canonical_status(channel: grpc.Channel, method: str, message: bytes) -> None:
    found = call(channel, f"{oip.SERVICE}/{method}", message)
    assert isinstance(found, bytes) or found.code in ENDS


def test_after_all_that_the_server_answers_as_ever(channel: grpc.Channel) -> None:
    check_good_request(channel)
