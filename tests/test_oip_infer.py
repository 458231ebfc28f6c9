"""ModelInfer: the typed service's answers, for the same rows, in the protocol's own forms."""

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
from tests.gated import write_gated
from tests.pictures import encode
from tests.servers import DIGITS, running
from twinfer import Client
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

LABELS = (DIGITS / "labels.txt").read_text().split()


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """To the ensemble with one member for each kind of input, of at most 4 rows."""
    with (
        running(write_gated(tmp_path_factory.mktemp("oip") / "gated"), trust_code=True) as server,
        connect(server.address) as channel,
    ):
        yield channel


@pytest.fixture(scope="module")
def digits(digits_server: DigitsServer) -> Iterator[grpc.Channel]:
    with connect(digits_server.address) as channel:
        yield channel


def infer(
    channel: grpc.Channel, *inputs: tuple[oip.Tensor, bytes | None], outputs: Sequence[Any] = (), **rest: Any
) -> dict[str, Any]:
    response = oip.infer(channel, oip.request(rest.pop("model", "gated"), inputs, outputs, **rest))
    assert isinstance(response, pb.ModelInferResponse), response
    return oip.read(response)


def softmax(logits: Sequence[float]) -> list[float]:
    exponents = np.exp(np.array(logits) - max(logits))
    return list(exponents / exponents.sum())


def jpeg(path: Path) -> bytes:
    return encode(Image.open(path).convert("L").resize((64, 64)), "JPEG")


# --- the same answers ----------------------------------------------------------------------------------------------------


def test_images_and_texts_are_answered_as_by_the_typed_service(digits: grpc.Channel, digits_server: DigitsServer) -> None:
    rows = digits_server.rows[:8]
    images = [row.image.read_bytes() if number % 2 else jpeg(row.image) for number, row in enumerate(rows)]
    found = infer(
        digits,
        oip.texts("image", *images),
        oip.texts("text", *(row.text for row in rows)),
        model="digits",
        outputs=["prediction", "vision.prediction", "language.prediction", "degraded", "vision.state", "language.state"],
    )
    with Client(digits_server.address) as client:
        for place, (image, row) in enumerate(zip(images, rows, strict=True)):
            typed = client.infer({"image": image, "text": row.text}, member_predictions=True, top_k=10)
            said = {"prediction": typed.prediction} | {f"{name}.prediction": own.prediction for name, own in typed.members.items()}
            for output, prediction in said.items():
                assert prediction is not None
                for scored in prediction.classes:
                    assert found[output][place][LABELS.index(scored.label)] == pytest.approx(scored.probability, abs=1e-6)
    assert found["degraded"].tolist() == [[False]] * 8
    assert found["vision.state"] == found["language.state"] == [[b"OK"]] * 8


def test_pixels_are_answered_as_the_picture_they_are_of(digits: grpc.Channel, digits_server: DigitsServer) -> None:
    row = digits_server.rows[0]
    pixels = np.asarray(Image.open(row.image).convert("L"))[np.newaxis, :, :, np.newaxis]
    text = oip.texts("text", row.text)
    encoded = infer(digits, oip.texts("image", row.image.read_bytes()), text, model="digits")
    raw = infer(digits, oip.raw("image", "UINT8", pixels), text, model="digits")
    assert raw["prediction"] == pytest.approx(encoded["prediction"], abs=1e-7)


def test_ready_token_ids_are_taken_in_place_of_a_text(channel: grpc.Channel) -> None:
    for datatype in ("INT64", "INT32"):
        found = infer(channel, oip.raw("text", datatype, [[1, 2, 3]]), outputs=["words.state", "prediction"])
        assert found["words.state"] == [[b"OK"]]
        assert found["prediction"] == pytest.approx(np.full((1, 3), 1 / 3))


# --- the forms of a tensor -----------------------------------------------------------------------------------------------

TYPED = {
    "FP32": {"fp32_contents": [1.0, 2.0, 3.0]},
    "BYTES": {"bytes_contents": [b"two"]},
    "INT64": {"int64_contents": [1, 2]},
    "INT32": {"int_contents": [1, 2]},
    "UINT8": {"uint_contents": [0, 128, 255]},
}
NAMES = {"FP32": "numbers", "BYTES": "text", "INT64": "text", "INT32": "text", "UINT8": "image"}
SHAPES = {"FP32": [1, 3], "BYTES": [1, 1], "INT64": [1, 2], "INT32": [1, 2], "UINT8": [1, 1, 1, 3]}
RAW = {
    "FP32": np.array([1, 2, 3], "<f4").tobytes(),
    "BYTES": oip.join(b"two"),
    "INT64": np.array([1, 2], "<i8").tobytes(),
    "INT32": np.array([1, 2], "<i4").tobytes(),
    "UINT8": bytes([0, 128, 255]),
}


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_and_raw_bytes_are_the_same_tensor(channel: grpc.Channel, datatype: str) -> None:
    contents = pb.InferTensorContents(**TYPED[datatype])  # type: ignore[arg-type]
    typed = infer(channel, (oip.tensor(NAMES[datatype], datatype, SHAPES[datatype], contents), None))
    raw = infer(channel, (oip.tensor(NAMES[datatype], datatype, SHAPES[datatype]), RAW[datatype]))
    assert typed.keys() == raw.keys()
    assert typed["prediction"].tolist() == raw["prediction"].tolist()


def test_bf16_is_taken_where_fp32_is(channel: grpc.Channel) -> None:
    upper_halves = (np.array([[1, 2, 3]], "<f4").view("<u4") >> 16).astype("<u2")
    found = infer(channel, (oip.tensor("numbers", "BF16", [1, 3]), upper_halves.tobytes()))
    assert found["prediction"].tolist() == infer(channel, oip.raw("numbers", "FP32", [[1, 2, 3]]))["prediction"].tolist()


def test_several_inputs_of_typed_contents_make_one_row(channel: grpc.Channel) -> None:
    inputs = [
        oip.tensor(NAMES[datatype], datatype, SHAPES[datatype], pb.InferTensorContents(**TYPED[datatype]))  # type: ignore[arg-type]
        for datatype in ("FP32", "BYTES", "UINT8")
    ]
    found = infer(channel, *((tensor, None) for tensor in inputs), outputs=["numbers.prediction", "prediction"])
    assert found["numbers.prediction"] == pytest.approx(np.array([softmax([1, 2, 3])]), abs=1e-6)
    uniform = np.full(3, 1 / 3)
    assert found["prediction"][0] == pytest.approx((softmax([1, 2, 3]) + uniform + uniform) / 3, abs=1e-6)


def test_rows_come_and_go_along_the_first_dimension(channel: grpc.Channel) -> None:
    logits = [[0, 0, 9], [9, 0, 0], [0, 9, 0], [1, 2, 3]]
    found = infer(channel, oip.raw("numbers", "FP32", logits))
    assert found["prediction"] == pytest.approx(np.array([softmax(row) for row in logits]), abs=1e-6)
    assert found["numbers.state"] == [[b"OK"]] * 4
    assert found["words.state"] == [[b"NO_INPUT"]] * 4


# --- outputs -------------------------------------------------------------------------------------------------------------


def test_a_request_that_names_no_outputs_gets_all_but_the_members_predictions(channel: grpc.Channel) -> None:
    found = infer(channel, oip.raw("numbers", "FP32", [[0, 0, 9]]))
    assert list(found) == ["prediction", "degraded", "numbers.state", "picture.state", "words.state"]


def test_outputs_come_in_the_order_in_which_they_are_asked_for(channel: grpc.Channel) -> None:
    names = ["words.state", "prediction", "numbers.prediction", "degraded"]
    assert list(infer(channel, oip.raw("numbers", "FP32", [[0, 0, 9]]), outputs=names)) == names


def test_a_member_without_an_output_gives_nan(channel: grpc.Channel) -> None:
    found = infer(channel, oip.raw("numbers", "FP32", [[0, 0, 9]] * 2), outputs=["words.prediction", "words.state"])
    assert found["words.prediction"].shape == (2, 3)
    assert np.isnan(found["words.prediction"]).all()
    assert found["words.state"] == [[b"NO_INPUT"]] * 2


@pytest.mark.parametrize("output", ["prediction", "numbers.prediction"])
def test_the_best_classes_come_with_score_index_and_label(channel: grpc.Channel, output: str) -> None:
    rows = [[0, 1, 2], [9, 0, 8]]
    found = infer(channel, oip.raw("numbers", "FP32", rows), outputs=[oip.wanted(output, classification=2)])
    best = [[(2, "c"), (1, "b")], [(0, "a"), (2, "c")]]
    texts = [
        [f"{softmax(row)[index]:f}:{index}:{label}" for index, label in wanted] for row, wanted in zip(rows, best, strict=True)
    ]
    assert [[element.decode() for element in row] for row in found[output]] == texts


def test_more_classes_than_there_are_means_all(channel: grpc.Channel) -> None:
    found = infer(channel, oip.raw("numbers", "FP32", [[0, 1, 2]]), outputs=[oip.wanted("prediction", classification=99)])
    assert [element.decode().split(":")[2] for element in found["prediction"][0]] == ["c", "b", "a"]


def test_the_best_classes_of_a_member_without_an_output_are_empty(channel: grpc.Channel) -> None:
    wanted = oip.wanted("words.prediction", classification=2)
    assert infer(channel, oip.raw("numbers", "FP32", [[0, 1, 2]]), outputs=[wanted])["words.prediction"] == [[b""]]


def test_the_answer_says_which_model_gave_it_and_to_what(channel: grpc.Channel) -> None:
    response = oip.infer(channel, oip.request("gated", [oip.raw("numbers", "FP32", [[0, 0, 9]])], request_id="nine", version="7"))
    assert (response.model_name, response.model_version, response.id) == ("gated", "7", "nine")


# --- a member by itself --------------------------------------------------------------------------------------------------


def test_a_member_answers_by_itself_with_what_it_says_in_the_ensemble(channel: grpc.Channel) -> None:
    numbers = oip.raw("numbers", "FP32", [[1, 2, 3], [3, 2, 1]])
    together = infer(channel, numbers, oip.texts("text", "two", "one"), outputs=["numbers.prediction"])
    alone = infer(channel, numbers, model="gated.numbers")
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
    ],
    ids=lambda parameters: ", ".join(parameters),
)
def test_parameters_that_clients_send_are_taken(channel: grpc.Channel, parameters: dict[str, Any]) -> None:
    assert "prediction" in infer(channel, oip.raw("numbers", "FP32", [[0, 0, 9]]), parameters=parameters)


def test_what_clients_say_of_http_is_passed_over(channel: grpc.Channel) -> None:
    numbers, data = oip.raw("numbers", "FP32", [[0, 0, 9]])
    said = oip.tensor("numbers", "FP32", list(numbers.shape), binary_data_size=len(data))
    assert "prediction" in infer(channel, (said, data), outputs=[oip.wanted("prediction", binary_data=True)])


def test_a_policy_holds_as_in_the_typed_service(channel: grpc.Channel) -> None:
    found = oip.infer(
        channel, oip.request("gated", [oip.raw("numbers", "FP32", [[0, 0, 9]])], parameters={"policy": "REQUIRE_ALL"})
    )
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MISSING_INPUT")
