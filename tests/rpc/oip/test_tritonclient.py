"""Triton's own Python client against the real server, in an environment of its own, for it pins protobuf."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from tests.certificates import Authority
from tests.gated import write_gated
from tests.servers import DIGITS, ROOT, running
from twinfer import Client
from twinfer_server.demo import HeldOutRow, read_rows, running_server
from twinfer_server.rpc.oip import grpc_service_pb2 as pb

PYTHON = ROOT / ".venv-triton" / "bin" / "python"


@pytest.fixture(scope="module")
def row() -> HeldOutRow:
    return read_rows(DIGITS)[0]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_server(DIGITS) as address:
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
    """What the typed service says of the same image and text: the fused probabilities, and each member's, by label's index."""
    with Client(address) as client:
        answer = client.infer({"image": row.image, "text": row.text}, member_predictions=True, top_k=10)
    predictions = {"": answer.prediction} | {name: member.prediction for name, member in answer.members.items()}
    return {
        name: [scored.probability for scored in sorted(said.classes, key=lambda scored: scored.index)]
        for name, said in predictions.items()
        if said is not None
    }


def test_it_is_told_what_there_is(found: dict[str, Any]) -> None:
    assert found["state"] == {
        "live": True,
        "ready": True,
        "models": dict.fromkeys(["digits", "digits.vision", "digits.language"], "READY"),
        "server": "twinfer",
        "inputs": {"image": "UINT8", "text": "BYTES"},
        "max_batch_size": 32,
    }


def test_it_gets_the_typed_services_answers(found: dict[str, Any], typed: dict[str, list[float]]) -> None:
    infer = found["infer"]
    assert infer["prediction"] == [pytest.approx(typed[""], abs=1e-6)]
    assert infer["vision.prediction"] == [pytest.approx(typed["vision"], abs=1e-6)]
    assert (infer["degraded"], infer["vision.state"], infer["id"]) == ([[False]], [["OK"]], "seven")
    assert found["infer_without_naming_outputs"]["prediction"] == [pytest.approx(typed[""], abs=1e-6)]


@pytest.mark.parametrize("what", ["infer_pixels_and_token_ids", "infer_what_the_metadata_say"])
def test_it_sends_tensors(found: dict[str, Any], what: str) -> None:
    result = found[what]
    assert [pytest.approx(1, abs=1e-5)] * 2 == [sum(each) for each in result["prediction"]]
    assert result["vision.state"] == result["language.state"] == [["OK"]] * 2


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


def test_it_is_told_what_went_wrong(found: dict[str, Any]) -> None:
    errors = found["errors"]
    statuses = {sentence: status.removeprefix("StatusCode.") for sentence, (status, _) in errors.items()}
    unimplemented = [
        "loading", "unloading", "statistics", "log settings", "trace settings", "system memory", "CUDA memory",
    ]  # fmt: skip
    assert statuses == {
        "an unknown model": "NOT_FOUND",
        "an unknown version": "NOT_FOUND",
        "metadata of an unknown model": "NOT_FOUND",
        "an unknown input": "INVALID_ARGUMENT",
        "an unknown output": "INVALID_ARGUMENT",
        "no image": "INVALID_ARGUMENT",
        "an input in shared memory": "INVALID_ARGUMENT",
        "a timeout": "DEADLINE_EXCEEDED",
        "a client's own timeout": "DEADLINE_EXCEEDED",
        **dict.fromkeys(unimplemented, "UNIMPLEMENTED"),
    }
    assert all(message for _, message in errors.values())
    assert all("allowed" in errors[sentence][1] for sentence in unimplemented)


def test_the_example_of_the_documentation_runs(found: dict[str, Any], address: str) -> None:
    text = (ROOT / "docs" / "open-inference-protocol.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0].replace("localhost:50051", address)
    done = subprocess.run([PYTHON, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["5", "OK"]


def facts(*files: bytes) -> dict[str, Any]:
    """Every field, enum value and method of these files: numbers and types, by message, enum or service, and name."""
    found: dict[str, Any] = {}

    def add(message: DescriptorProto, within: str) -> None:
        path = f"{within}{message.name}."
        found.update({f"{path}{field.name}": (field.number, field.type, field.label, field.type_name) for field in message.field})
        for nested in message.nested_type:
            add(nested, path)

    for file in map(FileDescriptorProto.FromString, files):
        for message in file.message_type:
            add(message, "")
        for enum in file.enum_type:
            found |= {f"{enum.name}.{value.name}": value.number for value in enum.value}
        for service in file.service:
            found |= {f"{service.name}.{method.name}": (method.input_type, method.output_type) for method in service.method}
    return found


def test_names_and_numbers_are_those_that_it_knows(found: dict[str, Any]) -> None:
    """Every field, enum value and method of ours is one of its; of its messages, ours have all fields but the configuration's."""
    ours, theirs = facts(pb.DESCRIPTOR.serialized_pb), facts(*map(bytes.fromhex, found["files"]))
    assert {name: theirs.get(name) for name in ours} == ours
    parts = ("GRPCInferenceService.", "ModelConfig.", "ModelInput.", "ModelOutput.", "ModelDynamicBatching.")
    whole = {name.rpartition(".")[0] for name in ours if not name.startswith(parts)}
    assert {name for name in theirs.keys() - ours.keys() if name.rpartition(".")[0] in whole} == set()


BY_TLS = """
import sys
import numpy as np
import tritonclient.grpc as triton

address, ca, certificate, key = sys.argv[1:]
client = triton.InferenceServerClient(address, ssl=True, root_certificates=ca, private_key=key, certificate_chain=certificate)
numbers = triton.InferInput("numbers", [1, 3], "FP32")
numbers.set_data_from_numpy(np.array([[0, 0, 9]], np.float32))
print(client.is_server_ready(), client.infer("gated", [numbers]).as_numpy("prediction").argmax())
"""


def test_tritonclient_connects_by_tls(tmp_path: Path, authority: Authority) -> None:
    if not PYTHON.exists():
        pytest.skip("tritonclient is not installed: `make test` installs it where its registry can be reached")
    with running(write_gated(tmp_path), trust_code=True, **authority.serve(asks_clients=True)) as server:
        command: list[str | Path] = [PYTHON, "-W", "ignore", "-c", BY_TLS, server.address, authority.ca, *authority.pair("client")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True 2\n"), done.stderr
