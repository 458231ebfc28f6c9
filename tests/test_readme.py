"""The README and the docs, taken at their word: commands and programs run against a real server, tables hold everything.

grpcurl is played by this file: what it would send, it sends, with what it would know, which is what reflection says.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from typer.core import TyperGroup

from tests.calls import PATIENCE_SECONDS, connect
from tests.certificates import Authority
from tests.conftest import DigitsServer
from tests.servers import DIGITS, ROOT, RunningServer, running
from twinfer import tls_credentials
from twinfer.cli import app
from twinfer_server.cli import COMMANDS, load_command
from twinfer_server.errors import Reason, TwinferError
from twinfer_server.settings import ServerSettings
from twinfer_server.spec import read_spec

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
ADDRESS = "localhost:50051"
LABELS = (DIGITS / "labels.txt").read_text().split()


def blocks(language: str, *pages: str) -> list[str]:
    """Return the code blocks in a language, of some pages or of all."""
    texts = [PAGES[name] for name in pages or PAGES]
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def commands(*beginnings: str) -> list[str]:
    """Return the commands of all pages that begin so, each once."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in dict.fromkeys(lines) if line.startswith(beginnings)]


def by_tls(*beginnings: str) -> list[str]:
    """Return those of the commands that name an authority."""
    return [line for line in commands(*beginnings) if "-cacert" in line or "--tls-ca" in line]


def in_the_clear(*beginnings: str) -> list[str]:
    """Return the other commands."""
    return [line for line in commands(*beginnings) if line not in by_tls(*beginnings)]


def table(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    section = PAGES[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in rows]


def run_in_shell(line: str, address: str, function: str) -> "subprocess.CompletedProcess[str]":
    """Have the shell read a line, with a function in place of its command."""
    script = f"{function}\n{line.replace(ADDRESS, address)}"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=True
    )


def run_twinfer(line: str, address: str, options: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of twinfer's, with further options."""
    python = f"{shlex.quote(sys.executable)} -c 'from twinfer.cli import main; main()'"
    return run_in_shell(line, address, f'twinfer() {{ {python} "$@" {options}; }}')


# --- grpcurl ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grpcurl:
    """What a grpcurl command says, as its documentation has it: flags, address, and then a verb or a method."""

    address: str
    words: tuple[str, ...]
    data: str
    files: dict[str, Path]
    """Of its own TLS: -cacert, -cert and -key."""

    @classmethod
    def parse(cls, arguments: list[str]) -> "Grpcurl":
        words = iter(arguments)
        data, rest, is_plaintext, files = "", [], False, {}
        for word in words:
            if word == "-plaintext":
                is_plaintext = True
            elif word == "-d":
                data = next(words)
            elif word in ("-cacert", "-cert", "-key"):
                files[word] = Path(next(words))
            elif word.startswith("-"):
                raise ValueError(f"this test knows no flag {word}")
            else:
                rest.append(word)
        assert is_plaintext != bool(files), "without -plaintext grpcurl asks for TLS, by an authority that it has to know"
        return cls(rest[0], tuple(rest[1:]), data, files)

    def connect(self) -> grpc.Channel:
        if not self.files:
            return connect(self.address)
        ca, cert, key = (self.files.get(word) for word in ("-cacert", "-cert", "-key"))
        return grpc.secure_channel(self.address, tls_credentials(ca, cert, key))

    def run(self) -> list[str]:
        """Do it; give the lines that come back."""
        with self.connect() as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            match self.words:
                case ("list",):
                    return list(database.get_services())
                case ("list", service):
                    return [method.full_name for method in pool.FindServiceByName(service).methods]
                case ("describe", symbol):
                    file = pool.FindFileContainingSymbol(symbol)
                    return [f"{symbol} is in {file.name}, package {file.package}"]
                case (method,):
                    return self._call(channel, pool, *method.split("/"))
        raise ValueError(f"grpcurl knows no {self.words}")

    def _call(self, channel: grpc.Channel, pool: DescriptorPool, service: str, name: str) -> list[str]:
        method = pool.FindServiceByName(service).FindMethodByName(name)
        request = json_format.Parse(self.data or "{}", GetMessageClass(method.input_type)(), descriptor_pool=pool)
        to_message: Any = channel.unary_unary(
            f"/{service}/{name}", response_deserializer=GetMessageClass(method.output_type).FromString
        )
        reply = to_message(request.SerializeToString(), timeout=PATIENCE_SECONDS)
        return [json_format.MessageToJson(reply, descriptor_pool=pool)]


def grpcurl(line: str, address: str) -> list[str]:
    words = run_in_shell(line, address, r"grpcurl() { printf '%s\0' "
                         r'"$@"; }').stdout.split("\0")[:-1]  # fmt: skip
    command = Grpcurl.parse(words)
    assert command.address == address
    return command.run()


def test_the_pages_have_commands_for_all_that_they_promise() -> None:
    words = [shlex.split(line)[-1] for line in commands("grpcurl")]
    assert {"grpc.health.v1.Health/Check", "list", "twinfer.v1.EnsembleService/Infer"} <= set(words)
    assert any(" describe " in line for line in commands("grpcurl"))
    assert any("base64" in line for line in commands("grpcurl"))
    assert commands("twinfer infer")
    assert commands("twinfer bench")


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[RunningServer]:
    """The digits, by TLS."""
    with running(DIGITS, **authority.serve()) as server:
        yield server


@pytest.mark.parametrize("line", by_tls("grpcurl", "twinfer infer"))
def test_every_line_with_an_authority_gets_an_answer_by_tls(secured: RunningServer, authority: Authority, line: str) -> None:
    address = secured.address.replace("127.0.0.1", "localhost")  # as the certificate and the page say
    line = line.replace("certificates/", f"{authority.folder}/")
    if line.startswith("grpcurl"):
        assert grpcurl(line, address)
    else:
        assert any(label in run_twinfer(line, address, f"--server {address}").stdout for label in LABELS)


@pytest.mark.parametrize(
    "line",
    in_the_clear("grpcurl"),
    ids=lambda line: " ".join(word for word in line.split() if len(word) < 60),
)
def test_every_grpcurl_line_gets_an_answer(digits_server: DigitsServer, line: str) -> None:
    found = grpcurl(line, digits_server.address)
    assert found
    if line.endswith("/Infer"):
        answer = json.loads(found[0])
        assert answer["prediction"]["classification"]["classes"][0]["label"] in (LABELS if "base64" in line else ["five"])
        states = {member["name"]: member["state"] for member in answer["members"]}
        assert states["language"] == "MEMBER_STATE_OK"
        assert states["vision"] == ("MEMBER_STATE_OK" if "base64" in line else "MEMBER_STATE_NO_INPUT")
    if line.endswith("/Check"):
        assert json.loads(found[0]) == {"status": "SERVING"}
    if line.endswith(" list"):
        assert "twinfer.v1.EnsembleService" in found


# --- commands and programs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", commands("twinfer "))
def test_every_command_is_one_and_takes_what_it_is_given(line: str) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    is_service = arguments[0] in COMMANDS
    command: Any = typer.main.get_command(load_command(arguments.pop(0)) if is_service else app)
    while isinstance(command, TyperGroup):
        _, command, arguments = command.resolve_command(typer.Context(command), arguments)
    assert command.make_context("twinfer", arguments), "it fails for what the command does not take"


@pytest.mark.parametrize("line", in_the_clear("twinfer infer", "twinfer describe"))
def test_every_client_command_gets_an_answer(digits_server: DigitsServer, line: str) -> None:
    found = run_twinfer(line, digits_server.address, f"--server {digits_server.address}")
    assert any(label in found.stdout for label in LABELS)
    if "--json" in line:
        json.loads(found.stdout)


@pytest.mark.parametrize("line", commands("twinfer bench"))
def test_every_line_that_measures_does(digits_server: DigitsServer, tmp_path: Path, line: str) -> None:
    line = line.replace(" load.", f" {shlex.quote(str(tmp_path))}/load.")
    found = run_twinfer(line, digits_server.address, "--seconds 0.2 --warm-up 0")
    assert "answers/s" in found.stdout
    assert len(list(tmp_path.iterdir())) == line.count("/load.")


@pytest.mark.parametrize(
    ("page", "first_words"),
    [
        pytest.param("README.md", ["vision", "language", "fused"], id="the README"),
        pytest.param("reference.md", ["0", "1", "2"], id="the reference"),
    ],
)
def test_every_program_runs(
    digits_server: DigitsServer, monkeypatch: pytest.MonkeyPatch, page: str, first_words: list[str]
) -> None:  # fmt: skip
    (program,) = blocks("python", page)
    monkeypatch.chdir(ROOT)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program.replace(ADDRESS, digits_server.address), page, "exec"), {"__name__": "__main__"})
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert [line[0] for line in lines] == first_words
    assert lines[-1][1] in LABELS


def test_the_folder_that_the_readme_shows_is_one(tmp_path: Path) -> None:
    (spec,) = blocks("toml", "README.md")
    (tmp_path / "ensemble.toml").write_text(spec)
    for name in ("labels.txt", "tokenizer.json", "vision.pt2", "language.pt2"):
        (tmp_path / name).touch()
    assert list(read_spec(tmp_path).members) == ["vision", "language"]


def test_the_readme_says_what_the_demo_prints() -> None:
    stated = json.loads((DIGITS / "accuracies.json").read_text())
    right = ", ".join(f"{name} {stated[name]:.1%}" for name in ("vision", "language", "fused"))
    assert f"Right: {right}\n" in PAGES["README.md"]
    assert f"asks {stated['rows']} " in PAGES["README.md"]


# --- links and tables -----------------------------------------------------------------------------------------------------------


def anchors(page: str) -> Iterator[str]:
    """Yield what GitHub calls the headings of a page."""
    for heading in re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        assert (folder / path).exists(), link
        assert not anchor or anchor in anchors(Path(path).name or page), link


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(PAGES["README.md"].splitlines()) < 200


def test_the_table_of_settings_has_each_with_its_default() -> None:
    stated = {name: default for name, default, _ in table("operate.md", "Settings")}
    words = {"": "empty", "None": "none", "[]": "none", "True": "true", "False": "false"}
    real = {name: str(field.default) for name, field in ServerSettings.model_fields.items()}
    assert stated == {name: words.get(default, default.removesuffix(".0")) for name, default in real.items()}


def subclasses(kind: type[TwinferError]) -> Iterator[type[TwinferError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_the_table_of_errors_has_every_reason_with_its_code() -> None:
    rows = [(code, reason) for code, cell, _ in table("reference.md", "Errors") for reason in cell.split(", ")]
    kinds = [kind for kind in subclasses(TwinferError) if kind.default_reason is not Reason.UNSPECIFIED]
    assert sorted(rows) == sorted({(kind.default_code.name, kind.default_reason.name) for kind in kinds})
    assert len(rows) == len(Reason) - 1, "all but UNSPECIFIED"
