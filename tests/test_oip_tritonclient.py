"""Triton's own Python client against the real server, in an environment of its own, for it pins protobuf."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import DIGITS
from twinfer import Client
from twinfer_server.demo import HeldOutRow, read_rows, running_server
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
LABELS = (DIGITS / "labels.txt").read_text().split()


@pytest.fixture(scope="module")
def row() -> HeldOutRow:
    return read_rows(DIGITS)[0]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server(DIGITS, arguments=["--set", "cache_dir=", "--set", "shared_memory=true"]) as address:
        yield address


@pytest.fixture(scope="module")
def found(address: str, row: HeldOutRow) -> dict[str, Any]:
    """What came of a session."""
    if not PYTHON.exists():
        pytest.skip("tritonclient is not installed: `make test` installs it where its registry can be reached")
    command: list[str | Path] = [PYTHON, "-W", "ignore", ROOT / "tests" / "triton_session.py", address, row.image, row.text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def typed(address: str, row: HeldOutRow) -> dict[str, list[float]]:
    """What the typed service says to the same row: the fused probabilities, and each member's, by label's index."""
    with Client(address) as client:
        answer = client.infer({"image": row.image, "text": row.text}, member_predictions=True, top_k=10)
    predictions = {"": answer.prediction} | {name: member.prediction for name, member in answer.members.items()}
    return {
        name: [scored.probability for scored in sorted(said.classes, key=lambda scored: scored.index)]
        for name, said in predictions.items()
        if said is not None
    }


def test_it_is_told_what_there_is(found: dict[str, Any]) -> None:
    state = found["state"]
    names = ["digits", "digits.vision", "digits.language", "digits.fusion"]
    assert state == {
        "live": True,
        "ready": True,
        "models": dict.fromkeys([*names, "digits.encoded"], "READY"),
        "server": "twinfer",
        "inputs": {"image": "UINT8", "text": "BYTES"},
        "steps": names[1:],
        "log_error": {"bool_param": True},
        "trace_level": ["OFF"],
    }


def test_it_gets_the_typed_services_answers(found: dict[str, Any], typed: dict[str, list[float]]) -> None:
    infer = found["infer"]
    assert infer["prediction"] == [pytest.approx(typed[""], abs=1e-6)]
    assert infer["vision.prediction"] == [pytest.approx(typed["vision"], abs=1e-6)]
    assert (infer["degraded"], infer["vision.state"], infer["id"]) == ([[False]], [["OK"]], "seven")
    assert found["infer_without_naming_outputs"]["prediction"] == [pytest.approx(typed[""], abs=1e-6)]


def test_it_sends_pixels_and_token_ids(found: dict[str, Any]) -> None:
    result = found["infer_pixels_and_token_ids"]
    assert [pytest.approx(1, abs=1e-5)] * 2 == [sum(row) for row in result["prediction"]]
    assert result["vision.state"] == result["language.state"] == [["OK"]] * 2


def test_it_gets_the_best_classes(found: dict[str, Any], typed: dict[str, list[float]]) -> None:
    best = sorted(range(10), key=lambda index: -typed[""][index])[:3]
    (texts,) = found["best_classes"]["prediction"]
    assert [text.split(":")[1:] for text in texts] == [[str(index), LABELS[index]] for index in best]
    assert [float(text.split(":")[0]) for text in texts] == pytest.approx([typed[""][index] for index in best], abs=1e-6)


def test_it_asks_a_member_by_itself(found: dict[str, Any], typed: dict[str, list[float]]) -> None:
    assert found["member"] == {"prediction": [pytest.approx(typed["vision"], abs=1e-6)], "state": [["OK"]]}


def test_it_asks_without_waiting(found: dict[str, Any], typed: dict[str, list[float]]) -> None:
    assert found["infer_async"]["ids"] == [str(number) for number in range(8)]
    assert found["infer_async"]["predictions"] == [[pytest.approx(typed[""], abs=1e-5)]] * 8


def test_it_streams_and_a_failed_request_leaves_the_stream_alive(found: dict[str, Any]) -> None:
    stream = found["stream"]
    assert (stream["ids"], stream["final"]) == (["one", "three"], [True, True])
    assert len(stream["errors"]) == 1
    assert stream["errors"][0].startswith("[NOT_FOUND] model 'x' is not served")


def test_its_statistics_agree(found: dict[str, Any]) -> None:
    assert found["statistics"] == {model: [0] * 5 if model == "digits.encoded" else [1] * 5 for model in found["state"]["models"]}


def test_it_hands_tensors_over_in_shared_memory(found: dict[str, Any]) -> None:
    result = found["in_shared_memory"]
    assert (result["listed"], result["left"]) == (["region"], [])
    assert result["shared"] == result["in_band"]


def test_it_is_told_what_went_wrong(found: dict[str, Any]) -> None:
    errors = found["errors"]
    statuses = {sentence: status.removeprefix("StatusCode.") for sentence, (status, _) in errors.items()}
    assert statuses == {
        "an unknown model": "NOT_FOUND",
        "an unknown version": "NOT_FOUND",
        "metadata of an unknown model": "NOT_FOUND",
        "an unknown input": "INVALID_ARGUMENT",
        "an unknown output": "INVALID_ARGUMENT",
        "no image": "INVALID_ARGUMENT",
        "a timeout": "DEADLINE_EXCEEDED",
        "a client's own timeout": "DEADLINE_EXCEEDED",
        "loading": "UNIMPLEMENTED",
        "unloading": "UNIMPLEMENTED",
        "the fusion": "UNIMPLEMENTED",
        "other log settings": "UNIMPLEMENTED",
        "CUDA memory": "UNIMPLEMENTED",
    }
    assert all(message for _, message in errors.values())


def test_the_example_of_the_documentation_runs(found: dict[str, Any], address: str) -> None:
    text = (ROOT / "docs" / "open-inference-protocol.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0].replace("localhost:50051", address)
    done = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    best, state = done.stdout.split()
    assert best.endswith(":5:five")
    assert state == "OK"


def test_names_and_numbers_are_those_that_it_knows(found: dict[str, Any]) -> None:
    """Every field, enum value and method of ours is one of its; those of the model's configuration are fewer."""
    theirs = found["fields"]
    ours: dict[str, Any] = {}

    def add(message: Any) -> None:
        for field in message.fields:
            kind = field.message_type or field.enum_type
            ours[field.full_name] = [field.number, field.type, kind.full_name if kind else ""]
        for nested in message.nested_types:
            add(nested)

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        add(message)
    ours |= {f"inference.{value.name}": [value.number] for value in pb.DataType.DESCRIPTOR.values}
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    ours |= {method.full_name: [method.input_type.full_name, method.output_type.full_name] for method in service.methods}
    theirs |= {f"inference.{name.rpartition('.')[2]}": number for name, number in theirs.items() if ".DataType.TYPE_" in name}
    assert {name: theirs.get(name) for name in ours} == ours
    configuration = {name for name in theirs if name.startswith(("inference.Model", "inference.Batch", "inference.DataType"))}
    extras = {"inference.InferResponseStatistics", "inference.MemoryUsage"}
    assert {name for name in theirs.keys() - ours.keys() - configuration if name.rpartition(".")[0] not in extras} == set()
