"""ModelInfer: the typed service's answers, to the same requests, in the protocol's own forms."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tests import oip
from tests.calls import connect
from tests.conftest import DigitsServer
from tests.oip import outputs
from tests.pictures import encode
from tests.servers import DIGITS
from twinfer import Client
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

LABELS = (DIGITS / "labels.txt").read_text().split()
NUMBERS = oip.raw("numbers", "FP32", [[0, 0, 9]])


@pytest.fixture(scope="module")
def digits(digits_server: DigitsServer) -> Iterator[grpc.Channel]:
    with connect(digits_server.address) as channel:
        yield channel


def softmax(logits: Sequence[float]) -> list[float]:
    exponents = np.exp(np.array(logits) - max(logits))
    return list(exponents / exponents.sum())


# --- the same answers ----------------------------------------------------------------------------------------------------


def test_images_and_texts_are_answered_as_by_the_typed_service(digits: grpc.Channel, digits_server: DigitsServer) -> None:
    rows = digits_server.rows[:8]
    jpegs = [encode(Image.open(row.image).convert("L").resize((64, 64)), "JPEG") for row in rows]
    images = [row.image.read_bytes() if number % 2 else jpegs[number] for number, row in enumerate(rows)]
    wanted = ["prediction", "vision.prediction", "language.prediction", "degraded", "vision.state", "language.state"]
    inputs = oip.texts("image", *images), oip.texts("text", *(row.text for row in rows))
    found = outputs(digits, *inputs, model="digits", wanted=wanted)
    with Client(digits_server.address) as client:
        for index, (image, row) in enumerate(zip(images, rows, strict=True)):
            typed = client.infer({"image": image, "text": row.text}, member_predictions=True, top_k=10)
            said = {"prediction": typed.prediction} | {f"{name}.prediction": own.prediction for name, own in typed.members.items()}
            for output, prediction in said.items():
                assert prediction is not None
                for scored in prediction.classes:
                    assert found[output][index][LABELS.index(scored.label)] == pytest.approx(scored.probability, abs=1e-6)
    assert found["degraded"].tolist() == [[False]] * 8
    assert found["vision.state"] == found["language.state"] == [[b"OK"]] * 8


def test_pixels_are_answered_as_the_picture_they_are_of(digits: grpc.Channel, digits_server: DigitsServer) -> None:
    row = digits_server.rows[0]
    pixels = np.asarray(Image.open(row.image).convert("L"))[np.newaxis, :, :, np.newaxis]
    text = oip.texts("text", row.text)
    encoded = outputs(digits, oip.texts("image", row.image.read_bytes()), text, model="digits")
    raw = outputs(digits, oip.raw("image", "UINT8", pixels), text, model="digits")
    assert raw["prediction"] == pytest.approx(encoded["prediction"], abs=1e-7)


# --- the forms of a tensor -----------------------------------------------------------------------------------------------

FORMS: dict[str, tuple[str, list[int], dict[str, Any], bytes]] = {
    "FP32": ("numbers", [1, 3], {"fp32_contents": [1.0, 2.0, 3.0]}, np.array([1, 2, 3], "<f4").tobytes()),
    "BYTES": ("text", [1, 1], {"bytes_contents": [b"two"]}, oip.join(b"two")),
    "INT64": ("text", [1, 2], {"int64_contents": [1, 2]}, np.array([1, 2], "<i8").tobytes()),
    "INT32": ("text", [1, 2], {"int_contents": [1, 2]}, np.array([1, 2], "<i4").tobytes()),
    "UINT8": ("image", [1, 1, 1, 3], {"uint_contents": [0, 128, 255]}, bytes([0, 128, 255])),
}


def typed(datatype: str) -> oip.Input:
    name, shape, contents, _ = FORMS[datatype]
    return oip.tensor(name, datatype, shape, pb.InferTensorContents(**contents)), None


@pytest.mark.parametrize("datatype", FORMS)
def test_typed_contents_and_raw_bytes_are_the_same_tensor(channel: grpc.Channel, datatype: str) -> None:
    name, shape, _, data = FORMS[datatype]
    one = outputs(channel, typed(datatype))
    other = outputs(channel, (oip.tensor(name, datatype, shape), data))
    member = {"numbers": "numbers", "text": "words", "image": "picture"}[name]
    assert one[f"{member}.state"] == other[f"{member}.state"] == [[b"OK"]]
    assert one["prediction"].tolist() == other["prediction"].tolist()


def test_bf16_is_taken_where_fp32_is(channel: grpc.Channel) -> None:
    upper_halves = (np.array([[1, 2, 3]], "<f4").view("<u4") >> 16).astype("<u2")
    found = outputs(channel, (oip.tensor("numbers", "BF16", [1, 3]), upper_halves.tobytes()))
    assert found["prediction"].tolist() == outputs(channel, oip.raw("numbers", "FP32", [[1, 2, 3]]))["prediction"].tolist()


def test_several_inputs_of_typed_contents_make_one_request(channel: grpc.Channel) -> None:
    inputs = [typed(datatype) for datatype in ("FP32", "BYTES", "UINT8")]
    found = outputs(channel, *inputs, wanted=["numbers.prediction", "prediction"])
    assert found["numbers.prediction"] == pytest.approx(np.array([softmax([1, 2, 3])]), abs=1e-6)
    uniform = np.full(3, 1 / 3)
    assert found["prediction"][0] == pytest.approx((softmax([1, 2, 3]) + uniform + uniform) / 3, abs=1e-6)


def test_requests_come_and_go_along_the_first_dimension(channel: grpc.Channel) -> None:
    logits = [[0, 0, 9], [9, 0, 0], [0, 9, 0], [1, 2, 3]]
    found = outputs(channel, oip.raw("numbers", "FP32", logits))
    assert found["prediction"] == pytest.approx(np.array([softmax(each) for each in logits]), abs=1e-6)
    assert found["numbers.state"] == [[b"OK"]] * 4
    assert found["words.state"] == [[b"NO_INPUT"]] * 4


# --- outputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gated", "gated.numbers"])
def test_a_message_that_names_no_outputs_gets_all_that_the_metadata_list(channel: grpc.Channel, model: str) -> None:
    listed = oip.ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name=model), pb.ModelMetadataResponse).outputs
    response = oip.infer(channel, oip.request(model, [oip.raw("numbers", "FP32", [[0, 0, 9]] * 2)]))
    assert isinstance(response, pb.ModelInferResponse), response
    assert [output.name for output in response.outputs] == [output.name for output in listed]
    for output, published in zip(response.outputs, listed, strict=True):
        assert (output.datatype, list(output.shape)) == (published.datatype, [2, *published.shape[1:]])


def test_outputs_come_in_the_order_in_which_they_are_asked_for(channel: grpc.Channel) -> None:
    names = ["words.state", "prediction", "numbers.prediction", "degraded"]
    assert list(outputs(channel, NUMBERS, wanted=names)) == names


def test_a_member_without_an_output_gives_nan(channel: grpc.Channel) -> None:
    numbers = oip.raw("numbers", "FP32", [[0, 0, 9]] * 2)
    found = outputs(channel, numbers, wanted=["words.prediction", "words.state"])
    assert found["words.prediction"].shape == (2, 3)
    assert np.isnan(found["words.prediction"]).all()
    assert found["words.state"] == [[b"NO_INPUT"]] * 2


def test_the_answer_says_which_model_gave_it_and_to_what(channel: grpc.Channel) -> None:
    response = oip.infer(channel, oip.request("gated", [NUMBERS], request_id="nine", version="7"))
    assert (response.model_name, response.model_version, response.id) == ("gated", "7", "nine")


def test_a_member_answers_by_itself_with_what_it_says_in_the_ensemble(channel: grpc.Channel) -> None:
    numbers = oip.raw("numbers", "FP32", [[1, 2, 3], [3, 2, 1]])
    together = outputs(channel, numbers, oip.texts("text", "two", "one"), wanted=["numbers.prediction"])
    alone = outputs(channel, numbers, model="gated.numbers")
    assert list(alone) == ["prediction", "state"]
    assert alone["prediction"].tolist() == together["numbers.prediction"].tolist()
    assert alone["state"] == [[b"OK"]] * 2


# --- parameters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": 1},
        {"priority": pb.InferParameter(uint64_param=3)},
        {"priority": pb.InferParameter(uint64_param=2**64 - 1)},
        {"timeout": 10_000_000},
        {"timeout": pb.InferParameter(uint64_param=10_000_000)},
        {"timeout": 0, "priority": 0},
        {"policy": "BEST_EFFORT"},
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"triton_enable_empty_final_response": True},
        {"triton_whatever_comes_next": 1.5},
        {"binary_data_output": True},
        {"content_type": "pd"},
        {"headers": "x"},
        {"my_trace_id": "abc", "a": 1, "b": 1.5, "c": False, "d": pb.InferParameter()},
        {"classification": 0},
    ],
    ids=lambda parameters: ", ".join(parameters),
)
def test_parameters_that_clients_send_are_taken(channel: grpc.Channel, parameters: dict[str, Any]) -> None:
    assert "prediction" in outputs(channel, NUMBERS, parameters=parameters)


def test_what_clients_say_of_http_is_passed_over(channel: grpc.Channel) -> None:
    tensor = oip.tensor("numbers", "FP32", [1, 3], binary_data_size=12)
    assert "prediction" in outputs(channel, (tensor, NUMBERS[1]), wanted=[oip.wanted("prediction", binary_data=True)])


def test_a_policy_holds_as_in_the_typed_service(channel: grpc.Channel) -> None:
    found = oip.infer(channel, oip.request("gated", [NUMBERS], parameters={"policy": "REQUIRE_ALL"}))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_INPUT")


# --- what MLServer's clients send --------------------------------------------------------------------------------------------


RECORDED: dict[str, str] = json.loads((Path(__file__).parent / "mlserver.json").read_text())
"""What MLServer's own package sends: the messages by name, in hexadecimal, and which version made them."""


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "source"])
def test_what_mlserver_sends_is_answered(channel: grpc.Channel, name: str) -> None:
    message = pb.ModelInferRequest.FromString(bytes.fromhex(RECORDED[name]))
    response = oip.infer(channel, message)
    assert isinstance(response, pb.ModelInferResponse), response
    plain = outputs(channel, NUMBERS if "array" in name else oip.texts("text", *["two", "one"][: message.inputs[0].shape[0]]))
    assert oip.read(response)["prediction"].tolist() == plain["prediction"].tolist()


def contents(*texts: bytes, shape: list[int], **parameters: Any) -> oip.Input:
    return oip.tensor("text", "BYTES", shape, pb.InferTensorContents(bytes_contents=texts), **parameters), None


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_texts_come_with_a_content_type_in_either_shape(channel: grpc.Channel, shape: list[int]) -> None:
    plain = outputs(channel, oip.texts("text", "two", "one"))
    tensor = contents(b"two", b"one", shape=shape, content_type="str")
    found = outputs(channel, tensor, parameters={"content_type": "np"}, wanted=[oip.wanted("prediction", content_type="np")])
    assert found["prediction"].tolist() == plain["prediction"].tolist()


def test_base64_is_decoded_where_the_content_type_says_so(channel: grpc.Channel) -> None:
    plain = outputs(channel, oip.texts("text", "two"))
    found = outputs(channel, contents(b"dHdv", shape=[1, 1], content_type="base64"))
    assert found["prediction"].tolist() == plain["prediction"].tolist()
    assert found["words.state"] == [[b"OK"]]
