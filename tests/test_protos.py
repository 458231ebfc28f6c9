"""The committed stubs are what the contract makes, byte for byte."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATOR = ROOT / ".venv-protos" / "bin" / "python"
STUB_ROOTS = [ROOT / "clients" / "python", ROOT / "service"]
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def stubs_under(folders: Iterable[Path], root: Path) -> dict[Path, bytes]:
    """The stubs in these folders: path below root -> content."""
    paths = (path for folder in folders for path in folder.rglob("*_pb2*") if path.name.endswith(SUFFIXES))
    return {path.relative_to(root): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def committed() -> dict[Path, bytes]:
    return stubs_under(STUB_ROOTS, ROOT)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """What the pinned generator makes of protos/ now."""
    if not GENERATOR.exists():
        if sys.version_info >= (3, 14):
            pytest.skip("the stubs' generator has no wheel for this Python: `make test PROTOS_PYTHON=python3.13`")
        pytest.fail("the stubs' generator is not installed: `make test` installs it, and so does `make protos`")
    into = tmp_path_factory.mktemp("stubs")
    command: list[str | Path] = [GENERATOR, "-W", "ignore", ROOT / "protos" / "generate.py", "--into", into]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return stubs_under([into], into)


def test_no_stub_is_missing_or_left_over(committed: dict[Path, bytes], fresh: dict[Path, bytes]) -> None:
    assert committed.keys() == fresh.keys(), "run `make protos` and commit what it makes"


def test_every_stub_is_what_its_proto_makes(committed: dict[Path, bytes], fresh: dict[Path, bytes]) -> None:
    stale = sorted(str(path) for path in committed.keys() & fresh.keys() if committed[path] != fresh[path])
    assert not stale, "run `make protos` and commit what it makes"


def test_every_proto_has_its_three_stubs_and_every_stub_its_proto(committed: dict[Path, bytes]) -> None:
    """Needs no generator: a stub and its proto share a name."""
    protos = {path.stem for path in (ROOT / "protos").rglob("*.proto")}
    assert protos, "the contract lies in protos/"
    assert {path.name for path in committed} == {f"{proto}{suffix}" for proto in protos for suffix in SUFFIXES}


def test_a_proto_lies_where_its_package_says() -> None:
    for path in (ROOT / "protos").rglob("*.proto"):
        package = ".".join(path.parent.relative_to(ROOT / "protos").parts)
        assert f"\npackage {package};\n" in path.read_text(), path


OTHER_DEFINITION = """
from google.protobuf import descriptor_pool, descriptor_pb2
other = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
other.message_type.add(name="ModelInferRequest").field.add(name="model_name", number=9, type=9, label=1)
first, second = {order}
first()
second()
"""
IMPORT_OURS = "lambda: __import__('twinfer_server.rpc.oip.grpc_service_pb2')"
DEFINE_OTHER = "lambda: descriptor_pool.Default().AddSerializedFile(other.SerializeToString())"


@pytest.mark.parametrize(
    "order",
    [(IMPORT_OURS, DEFINE_OTHER), (DEFINE_OTHER, IMPORT_OURS)],
    ids=["ours first", "the other's first"],
)
def test_the_inference_protocol_lives_beside_a_client_of_somebody_elses(order: tuple[str, str]) -> None:
    """Whose names are the same, and whose definitions need not be."""
    code = OTHER_DEFINITION.format(order=", ".join(order))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
