"""Make the Python stubs from the contract: `make protos`, and the test that looks for stale ones.

Runs in .venv-protos, whose one pinned generator is old enough for its output to load on protobuf 5 to 7.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Stubs:
    """Where the stubs of a folder of protos/ go: into `package`, a path below the source root `root`.

    A third party's package, which a process may also have from another distribution, has a descriptor pool to itself: the
    process's own takes only one definition of each name.
    """

    root: str
    package: str
    has_own_pool: bool = False


STUBS = {
    "twinfer": Stubs("clients/python", "twinfer"),
    "inference": Stubs("service", "twinfer_server/rpc/oip", has_own_pool=True),
}


def generate(folder: str, stubs: Stubs, into: Path) -> None:
    """Write the stubs of every proto in one folder below `into`, after removing those that are there."""
    root = into / stubs.root
    (root / stubs.package).mkdir(parents=True, exist_ok=True)
    for stub in (root / stubs.package).rglob("*_pb2*.py*"):
        stub.unlink()
    sources = sorted(f"{stubs.package}/{source.relative_to(PROTOS / folder)}" for source in (PROTOS / folder).rglob("*.proto"))
    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    well_known = Path(protoc.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{stubs.package}={PROTOS / folder}", f"-I{well_known}", *outputs, *sources]):
        raise SystemExit(f"protoc failed for protos/{folder}; its reasons stand above.")
    if stubs.has_own_pool:
        for stub in (root / stubs.package).rglob("*_pb2.py"):
            stub.write_text(stub.read_text().replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"))


def main() -> None:
    """Generate for every folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=PROTOS.parent, help="the tree to write to (this checkout)")
    into = parser.parse_args().into
    if unknown := {path.parent.relative_to(PROTOS).parts[0] for path in PROTOS.rglob("*.proto")} - STUBS.keys():
        raise SystemExit(f"protos/generate.py: say in STUBS where the stubs of {sorted(unknown)} go.")
    for folder, stubs in STUBS.items():
        generate(folder, stubs, into)


if __name__ == "__main__":
    main()
