"""Make the Python stubs from the contract: `make protos`, and the test that looks for stale ones.

Runs in .venv-protos, whose one pinned generator is old enough for its output to load on protobuf 5 to 7.
"""

import argparse
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent

# Each folder of protos/ and the source root that its Python package lies under.
ROOTS = {
    "twinfer": "clients/python",
}


def generate(folder: str, root: Path) -> None:
    """Write the stubs of every proto in one folder under root, after removing those that are there."""
    root.mkdir(parents=True, exist_ok=True)
    for stub in (root / folder).rglob("*_pb2*.py*"):
        stub.unlink()
    sources = sorted(str(source.relative_to(PROTOS)) for source in (PROTOS / folder).rglob("*.proto"))
    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    well_known = Path(protoc.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *outputs, *sources]):
        raise SystemExit(f"protoc failed for protos/{folder}; its reasons stand above.")


def main() -> None:
    """Generate for every folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=PROTOS.parent, help="the tree to write to (this checkout)")
    into = parser.parse_args().into
    if unknown := {path.parent.relative_to(PROTOS).parts[0] for path in PROTOS.rglob("*.proto")} - ROOTS.keys():
        raise SystemExit(f"protos/generate.py: say in ROOTS where the stubs of {sorted(unknown)} go.")
    for folder, root in ROOTS.items():
        generate(folder, into / root)


if __name__ == "__main__":
    main()
