"""Node.js as a caller: the same protos, loaded by another gRPC, against the real server."""

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import DigitsServer
from tests.scripted import ANSWER, ScriptedService
from twinfer import Client
from twinfer.v1 import ensemble_service_pb2 as pb

ROOT = Path(__file__).parents[2]
HELDOUT = ROOT / "ensembles" / "digits" / "heldout"

# What npm says where there is no network: no fault of ours.
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ETIMEDOUT", "ENOTCACHED")

Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Run infer.js, from a copy, so that the checkout stays as it is."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js is not installed here: there is no `node` or no `npm` on the PATH")
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "protos", copy / "protos")
    shutil.copytree(ROOT / "clients" / "node", copy / "clients" / "node", ignore=shutil.ignore_patterns("node_modules"))
    folder = copy / "clients" / "node"
    install = [npm, "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if any(code in done.stderr for code in UNREACHABLE):
        pytest.skip(f"npm cannot reach its registry: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command, env = [node, "infer.js", *arguments], os.environ | environment
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)

    return run


def first_heldout_row() -> tuple[Path, str]:
    with (HELDOUT / "rows.csv").open(newline="", encoding="utf-8") as rows:
        row = next(csv.DictReader(rows))
    return HELDOUT / row["image"], row["text"]


def test_node_gets_the_answer_that_python_gets(ask: Ask, digits_server: DigitsServer) -> None:
    image, text = first_heldout_row()
    done = ask(digits_server.address, str(image), text)
    assert (done.returncode, done.stderr) == (0, "")
    from_node = json.loads(done.stdout)
    with Client(digits_server.address) as client:
        from_python = client.infer({"image": image, "text": text})
    best = from_node["prediction"]["classification"]["classes"][0]
    assert best["label"] == from_python.label
    assert best["probability"] == pytest.approx(from_python.probability, abs=1e-5)
    assert {member["name"]: member["state"] for member in from_node["members"]} == {
        "vision": "MEMBER_STATE_OK",
        "language": "MEMBER_STATE_OK",
    }


def test_node_is_told_the_reason(ask: Ask, digits_server: DigitsServer, tmp_path: Path) -> None:
    (tmp_path / "five.png").write_text("not an image")
    done = ask(digits_server.address, str(tmp_path / "five.png"), "fve")
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "REASON_INVALID_INPUT")
    assert "image" in error["text"]


def test_node_shows_the_token_that_it_is_given(ask: Ask, service: ScriptedService) -> None:
    shown: list[dict[str, Any]] = []

    def script(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferResponse:
        shown.append(dict(context.invocation_metadata()))
        return ANSWER

    service.script = script
    image, text = first_heldout_row()
    for token in ("", "infer-token"):
        assert ask(service.address, str(image), text, TWINFER_TOKEN=token).returncode == 0
    assert [metadata.get("authorization") for metadata in shown] == [None, "Bearer infer-token"]


def test_node_is_told_where_no_server_listens(ask: Ask) -> None:
    image, text = first_heldout_row()
    done = ask("127.0.0.1:1", str(image), text)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["reason"]) == ("UNAVAILABLE", "REASON_UNSPECIFIED")
    assert "127.0.0.1:1" in error["text"]
