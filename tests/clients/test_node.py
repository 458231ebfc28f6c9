"""Node.js as a caller: the same protos, loaded by another gRPC, against the real server."""

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.certificates import Authority, replace
from tests.conftest import DigitsServer
from tests.gated import write_gated
from tests.scripted import ANSWER, ScriptedService, serving
from tests.servers import running
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

    def run(*arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
        env = os.environ | {name: str(value) for name, value in variables.items()}
        command = [node, "infer.js", *arguments]
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


def test_node_shows_the_token_that_it_is_given_by_tls_too(ask: Ask, authority: Authority) -> None:
    shown: list[dict[str, Any]] = []

    def script(request: pb.InferRequest, context: grpc.ServicerContext) -> pb.InferResponse:
        shown.append(dict(context.invocation_metadata()))
        return ANSWER

    image, text = first_heldout_row()
    certificate, key = (path.read_bytes() for path in authority.pair("server"))
    service = ScriptedService()
    service.script = script
    with serving(service) as plain, serving(service, credentials=grpc.ssl_server_credentials([(key, certificate)])) as secured:
        for token in ("", "infer-token"):
            assert ask(plain, str(image), text, TWINFER_TOKEN=token).returncode == 0
        address = secured.replace("127.0.0.1", "localhost")
        assert ask(address, str(image), text, TWINFER_TOKEN="by-tls", TWINFER_TLS_CA=authority.ca).returncode == 0
    assert [metadata.get("authorization") for metadata in shown] == [None, "Bearer infer-token", "Bearer by-tls"]


def test_node_is_told_where_no_server_listens(ask: Ask) -> None:
    image, text = first_heldout_row()
    done = ask("127.0.0.1:1", str(image), text)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert (error["code"], error["reason"]) == ("UNAVAILABLE", "REASON_UNSPECIFIED")
    assert "127.0.0.1:1" in error["text"]


# --- TLS --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[str]:
    """Give the address of a server that wants certificates, by name: Node.js warns of TLS with one that is called by its number."""
    folder = write_gated(tmp_path_factory.mktemp("gated"))
    with running(folder, trust_code=True, **authority.serve(asks_clients=True)) as server:
        yield server.address.replace("127.0.0.1", "localhost")


def certificates(authority: Authority, client: str = "") -> dict[str, object]:
    cert, key = authority.pair(client)
    return {"TWINFER_TLS_CLIENT_CERT": cert, "TWINFER_TLS_CLIENT_KEY": key} if client else {}


def test_node_is_let_in_with_the_right_certificate(ask: Ask, secured: str, authority: Authority) -> None:
    image, text = first_heldout_row()
    done = ask(secured, str(image), text, TWINFER_TLS_CA=authority.ca, **certificates(authority, "client"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ensemble"] == "gated"


@pytest.mark.parametrize("client", ["", "stranger", "former client"], ids=lambda name: name or "none")
def test_node_is_kept_out_without_the_right_certificate(
    ask: Ask, secured: str, authorities: tuple[Authority, Authority], client: str
) -> None:
    image, text = first_heldout_row()
    ours, other = authorities
    shown = certificates(other, "client") if client == "stranger" else certificates(ours, client)
    done = ask(secured, str(image), text, TWINFER_TLS_CA=ours.ca, **shown)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert json.loads(done.stderr)["error"]["code"] == "UNAVAILABLE"


def test_node_is_answered_while_certificates_are_replaced(ask: Ask, tmp_path: Path, authority: Authority) -> None:
    image, text = first_heldout_row()
    files: dict[str, Any] = {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    replace(files, authority, "server")
    with running(write_gated(tmp_path / "gated"), trust_code=True, **files) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        for name in ("renewed", "server"):
            replace(files, authority, name)
            done = ask(address, str(image), text, TWINFER_TLS_CA=authority.ca)
            assert (done.returncode, done.stderr) == (0, "")


def test_node_trusts_no_other_authority_and_reads_no_file_that_is_not_there(
    ask: Ask, secured: str, authorities: tuple[Authority, Authority]
) -> None:
    image, text = first_heldout_row()
    ours, other = authorities
    done = ask(secured, str(image), text, TWINFER_TLS_CA=other.ca, **certificates(ours, "client"))
    assert done.returncode == 1
    assert "certificate" in json.loads(done.stderr)["error"]["text"]
    done = ask(secured, str(image), text, TWINFER_TLS_CA="absent.pem")
    assert (done.returncode, done.stdout) == (2, "")
    assert "absent.pem" in done.stderr
