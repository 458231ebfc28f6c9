"""Print how large the code is: `python -m tests.sizes`. Nothing here is a limit; a change says what it adds."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"service": "service/twinfer_server", "client": "clients/python/twinfer", "tests": "tests", "benchmarks": "benchmarks"}


@dataclass(slots=True)
class Size:
    """The hand-written Python files of a folder, and their lines."""

    files: int = 0
    lines: int = 0
    code: int = 0
    docstrings: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Size":
        """Count a folder; generated stubs are left out."""
        size = cls()
        for path in sorted(folder.rglob("*.py")):
            if "_pb2" not in path.name:
                size.add(path.read_text(encoding="utf-8"))
        return size

    def add(self, source: str) -> None:
        """Count one file."""
        documented = {line for first, last in _docstrings(ast.parse(source)) for line in range(first, last + 1)}
        self.files += 1
        for number, line in enumerate(source.splitlines(), start=1):
            self.lines += 1
            self.docstrings += number in documented
            self.code += number not in documented and bool(line.strip()) and not line.lstrip().startswith("#")


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Yield the first and last lines of docstrings, those of attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.end_lineno or node.lineno


def main() -> None:
    """Print a table."""
    print(f"{'':12}{'files':>8}{'lines':>8}{'code':>8}{'docstrings':>12}")
    for name, folder in PARTS.items():
        size = Size.of(ROOT / folder)
        share = f"{size.docstrings} ({size.docstrings / size.lines:.0%})"
        print(f"{name:12}{size.files:8}{size.lines:8}{size.code:8}{share:>12}")


if __name__ == "__main__":
    main()
