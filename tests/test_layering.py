"""Nothing calls backwards: the layers, as one table, and what each of them may never import."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "service" / "twinfer_server"
CLIENT = ROOT / "clients" / "python" / "twinfer"

WIRE = {"grpc", "grpc_health", "grpc_reflection", "google.protobuf", "twinfer"}
# The contract's enums and gRPC's status codes are plain numbers; they may be named anywhere.
NUMBERS = {"grpc.StatusCode", "twinfer.errors", "twinfer.v1"}

# The service, from the top down: (its parts, what none of them imports). A part imports from its own layer and from
# those below it. A part is a sub-package or a module of twinfer_server; a new one must be given its layer here.
LAYERS: list[tuple[set[str], set[str]]] = [
    ({"cli", "serve", "demo", "metrics", "terminal", "fit", "profile", "draft"}, set()),
    ({"rpc"}, {"torch"}),
    ({"engine"}, WIRE),
    ({"executor"}, WIRE),
    ({"fusion", "inputs", "loaders", "precision", "reference"}, WIRE),
    ({"types", "spec", "settings", "trust", "runtime"}, WIRE),
    ({"device"}, WIRE),
    ({"errors"}, WIRE | {"torch"}),
]
DEPTH = {part: depth for depth, (parts, _) in enumerate(LAYERS) for part in parts}
NEVER = {part: never for parts, never in LAYERS for part in parts}

# What the client library may import besides the standard library. Its command line may also use typer, and reaches
# the service from inside functions only.
LIBRARY = {"grpc", "google.protobuf", "twinfer"}
COMMAND_LINE = LIBRARY | {"typer"}
# What makes load is no part of the library: its extra brings numpy and Pillow, and the rest is put off like the command line's.
LOAD = LIBRARY | {"numpy", "PIL"}


@dataclass(frozen=True, slots=True)
class Import:
    """One name that a file imports, and when: with the module, inside a call, or for the type checker only."""

    name: str
    when: str
    line: int


def imports_of(source: str, module: str) -> Iterator[Import]:
    """Every import of a file. module: its dotted name; a package's own file ends in `.__init__`."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, when, node.lineno) for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                above = module.split(".")[:-level] if level else []
                start = ".".join([*above, *([origin] if origin else [])])
                yield from (Import(f"{start}.{alias.name}", when, node.lineno) for alias in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for statement in node.body:
                    yield from walk(statement, "types")
                for statement in node.orelse:
                    yield from walk(statement, when)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, "call" if when == "module" else when)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, when)

    yield from walk(ast.parse(source), "module")


def files_under(package: Path) -> Iterator[tuple[Path, str]]:
    """The package's own Python files, each with its module's dotted name; generated stubs are protoc's business."""
    for path in sorted(package.rglob("*.py")):
        if not path.stem.endswith(("_pb2", "_pb2_grpc")):
            yield path, ".".join(path.relative_to(package.parent).with_suffix("").parts)


def is_within(name: str, roots: set[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def part_of(name: str) -> str:
    """twinfer_server.rpc.codec -> rpc."""
    return name.split(".")[1]


def backward_imports(part: str, found: Import) -> Iterator[str]:
    """What is wrong with this import in this part of the service."""
    if is_within(found.name, NEVER[part]) and not is_within(found.name, NUMBERS):
        yield f"`{part}` never imports {found.name}"
    if is_within(found.name, {"twinfer_server"}):
        target = part_of(found.name) if "." in found.name else "(the package itself)"
        if target not in DEPTH:
            yield f"{found.name} is no part that LAYERS knows"
        elif DEPTH[target] < DEPTH[part]:
            yield f"`{part}` lies below `{target}` and imports {found.name}"


def test_every_part_of_the_service_has_its_layer() -> None:
    parts = {path.stem for path in SERVICE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} <= DEPTH.keys(), "say in LAYERS where the new part belongs"


def test_the_service_never_calls_backwards() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}: {reason}"
        for path, module in files_under(SERVICE)
        if part_of(module) in DEPTH
        for found in imports_of(path.read_text(), module)
        for reason in backward_imports(part_of(module), found)
    ]
    assert not wrong, "\n".join(wrong)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Which modules of a package import which others, whenever they do: with the module, for types, or in a call."""
    modules = {module.removesuffix(".__init__"): path for path, module in files_under(package)}
    graph: dict[str, set[str]] = {}
    for path, module in files_under(package):
        name = module.removesuffix(".__init__")
        graph[name] = set()
        for found in imports_of(path.read_text(), module):
            # A package's own file only hands names on: what is taken through it comes from the module that has it.
            target = found.name if found.name in modules else found.name.rpartition(".")[0]
            if found.when != "call" and target in modules and target != name:
                graph[name].add(target)
    return graph


@pytest.mark.parametrize("package", [SERVICE, CLIENT], ids=["the service", "the client"])
def test_no_module_imports_itself_through_others_not_even_for_types(package: Path) -> None:
    graph, done, path = graph_of(package), set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for target in sorted(graph[module]):
            visit(target)
        done.add(path.pop())

    for module in sorted(graph):
        visit(module)


MAX_FUNCTION_LINES = 50


def test_every_function_fits_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for package in (SERVICE, CLIENT)
        for path, _ in files_under(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_the_package_itself_imports_nothing() -> None:
    assert not list(imports_of((SERVICE / "__init__.py").read_text(), "twinfer_server.__init__"))


def test_the_client_is_light() -> None:
    wrong = []
    for path, module in files_under(CLIENT):
        in_command_line = is_within(module, {"twinfer.cli"})
        in_load = is_within(module, {"twinfer.load"})
        allowed = set(sys.stdlib_module_names) | (COMMAND_LINE if in_command_line else LOAD if in_load else LIBRARY)
        for found in imports_of(path.read_text(), module):
            is_put_off = found.when == "types" or (found.when == "call" and (in_command_line or in_load))
            if not is_within(found.name, allowed) and not is_put_off:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line}: imports {found.name}")
            if is_within(found.name, {"twinfer_server"}) and not in_command_line:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line}: the library knows nothing of the service")
            if is_within(found.name, {"twinfer.cli", "typer", "rich"}) and not in_command_line:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line}: only commands know the command line")
            if is_within(found.name, {"twinfer.load"}) and not (in_command_line or in_load):
                wrong.append(f"{path.relative_to(ROOT)}:{found.line}: the library knows nothing of load")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("import torch.cuda", "a.b", [("torch.cuda", "module")]),
        ("from torch import cuda, nn", "a.b", [("torch.cuda", "module"), ("torch.nn", "module")]),
        ("from . import rows", "a.engine.batcher", [("a.engine.rows", "module")]),
        ("from ..rpc.codec import encode", "a.engine.batcher", [("a.rpc.codec.encode", "module")]),
        ("from .lane import Lane", "a.device.__init__", [("a.device.lane.Lane", "module")]),
        ("def f():\n    import numpy", "a.b", [("numpy", "call")]),
        ("if TYPE_CHECKING:\n    import numpy\nelse:\n    import io", "a.b", [("numpy", "types"), ("io", "module")]),
        ("try:\n    import uvloop\nexcept ImportError:\n    pass", "a.b", [("uvloop", "module")]),
    ],
)
def test_the_walk_sees_every_import(source: str, module: str, expected: list[tuple[str, str]]) -> None:
    assert [(found.name, found.when) for found in imports_of(source, module)] == expected


@pytest.mark.parametrize(
    ("part", "name", "is_wrong"),
    [
        ("rpc", "twinfer_server.engine.Engine", False),
        ("engine", "twinfer_server.rpc.codec", True),
        ("loaders", "twinfer_server.engine.Engine", True),
        ("device", "twinfer_server.types.Request", True),
        ("device", "twinfer_server.errors.DeviceLost", False),
        ("engine", "google.protobuf.duration_pb2", True),
        ("executor", "grpc.aio", True),
        ("errors", "grpc.StatusCode", False),
        ("rpc", "torch", True),
        ("rpc", "torchvision", False),
        ("rpc", "twinfer_server.helpers.retry", True),
    ],
)
def test_the_table_refuses_what_it_should(part: str, name: str, is_wrong: bool) -> None:
    assert bool(list(backward_imports(part, Import(name, "module", 1)))) == is_wrong
