"""The README, taken at its word: its commands and its program run against a real server, its tables hold everything.

grpcurl is played by this file: what it would send, it sends, with what it would know, which is what reflection says.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.calls import PATIENCE_SECONDS, connect
from tests.conftest import DigitsServer
from tests.servers import DIGITS, ROOT
from twinfer_server.errors import Code, Reason
from twinfer_server.settings import ServerSettings

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "localhost:50051"
LABELS = (DIGITS / "labels.txt").read_text().split()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(*beginnings: str) -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(beginnings)]


def table(heading: str) -> list[list[str]]:
    """Give the cells of the first table below a heading, without its head."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in rows]


def run_in_shell(line: str, address: str, function: str) -> "subprocess.CompletedProcess[str]":
    """Have the shell read a README's line, with a function in place of its command."""
    script = f"{function}\n{line.replace(ADDRESS, address)}"
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=4 * PATIENCE_SECONDS, check=True
    )


# --- grpcurl ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grpcurl:
    """What a grpcurl command says, as its documentation has it: flags, address, and then a verb or a method."""

    address: str
    words: tuple[str, ...]
    data: str

    @classmethod
    def parse(cls, arguments: list[str]) -> "Grpcurl":
        words = iter(arguments)
        data, rest, is_plaintext = "", [], False
        for word in words:
            if word == "-plaintext":
                is_plaintext = True
            elif word == "-d":
                data = next(words)
            elif word.startswith("-"):
                raise ValueError(f"this test knows no flag {word}")
            else:
                rest.append(word)
        assert is_plaintext, "without -plaintext grpcurl would ask for TLS"
        return cls(rest[0], tuple(rest[1:]), data)

    def run(self) -> list[str]:
        """Do it; give the lines that come back."""
        with connect(self.address) as channel:
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


def test_the_readme_has_commands_for_all_that_it_promises() -> None:
    words = [shlex.split(line)[-1] for line in commands("grpcurl")]
    assert {"grpc.health.v1.Health/Check", "list", "twinfer.v1.EnsembleService/Infer"} <= set(words)
    assert any(" describe " in line for line in commands("grpcurl"))
    assert any("base64" in line for line in commands("grpcurl"))
    assert commands("twinfer infer")
    assert commands("twinfer bench")


@pytest.mark.parametrize("line", commands("grpcurl"), ids=lambda line: " ".join(word for word in line.split() if len(word) < 60))
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


# --- the client -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", commands("twinfer infer", "twinfer describe"))
def test_every_client_command_gets_an_answer(digits_server: DigitsServer, line: str) -> None:
    python = f"{shlex.quote(sys.executable)} -c 'from twinfer.cli import main; main()'"
    found = run_in_shell(line, digits_server.address, f'twinfer() {{ {python} "$@" --server {digits_server.address}; }}')
    assert any(label in found.stdout for label in LABELS)
    if "--json" in line:
        json.loads(found.stdout)


@pytest.mark.parametrize("line", commands("twinfer bench"))
def test_every_line_that_measures_does(digits_server: DigitsServer, tmp_path: Path, line: str) -> None:
    python = f"{shlex.quote(sys.executable)} -c 'from twinfer.cli import main; main()'"
    line = line.replace(" load.", f" {shlex.quote(str(tmp_path))}/load.")
    found = run_in_shell(line, digits_server.address, f'twinfer() {{ {python} "$@" --seconds 0.2 --warm-up 0; }}')
    assert "Every answer was compared" in found.stdout
    assert len(list(tmp_path.iterdir())) == line.count("/load.")


def test_the_python_program_prints_what_each_member_says_and_what_they_say_together(
    digits_server: DigitsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = blocks("python")
    monkeypatch.chdir(ROOT)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program.replace(ADDRESS, digits_server.address), "README.md", "exec"), {"__name__": "__main__"})
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["vision", "language", "fused"]
    assert lines[-1][1] in LABELS
    assert 0 <= float(lines[-1][2]) <= 1
    assert len(program.splitlines()) <= 14


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_table_of_settings_has_each_with_its_default() -> None:
    stated = {name: default for name, default, _ in table("Settings")}
    words = {"": "empty", "[]": "none", "True": "true", "False": "false"}
    real = {name: str(field.default) for name, field in ServerSettings.model_fields.items()}
    assert stated == {name: words.get(default, default.removesuffix(".0")) for name, default in real.items()}


def test_the_table_of_errors_has_every_code_and_reason() -> None:
    rows = table("Errors")
    assert {code for code, _, _ in rows} == {code.name for code in Code}
    reasons = [reason for _, cell, _ in rows for reason in cell.split(", ")]
    assert sorted(reasons) == sorted(reason.name for reason in Reason)
