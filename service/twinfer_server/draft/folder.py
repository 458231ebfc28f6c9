"""Writing the folder: the models copied in, and an `ensemble.toml` that says of each key what it is for."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import quote
from ..fusion import METHODS
from ..spec import SPEC_FILE
from .draft import CannotDraft, MemberDraft, plain_name

METHOD_OF_TASK = {
    "classification": "log_opinion_pool",
    "multi_label": "log_opinion_pool",
    "embedding": "concatenation",
    "similarity": "cosine",
    "detection": "weighted_boxes",
    "tensor": "weighted_mean",
}
WHAT_KINDS_SAY = {
    "image": "JPEG, PNG, ... or pixels; size, mean and std are read from the model's directory",
    "text": "a text; tokenizer, length and padding are read from the model's directory",
    "tensor": "a ready tensor of this dtype and shape",
}
LEFT_OUT = shutil.ignore_patterns(".git*", "onnx", "openvino", "*.h5", "*.msgpack", "*.ot", "*.md", "*.py", "pytorch_model*.bin")


def write_folder(folder: Path, drafts: Sequence[MemberDraft], method: str) -> None:
    """Write an ensemble folder of the drafts, fused by `method` ("" for what suits the task); raises CannotDraft."""
    tasks = {draft.task for draft in drafts}
    if len(tasks) > 1:
        found = ", ".join(f"{draft.name}: {draft.task}" for draft in drafts)
        raise CannotDraft(f"members: found different tasks ({found}); allowed: one task for all")
    labels = {draft.labels for draft in drafts if draft.labels}
    if len(labels) > 1:
        raise CannotDraft("members: their configurations name different classes, or in another order; allowed: the same")
    drafts = _part_inputs(drafts)
    task = drafts[0].task
    methods = [name for name, entry in METHODS.items() if task in entry.tasks]
    if method and method not in methods:
        raise CannotDraft(f"--fusion: found {quote(method)}; allowed for task {task!r}: {', '.join(methods)}")
    if folder.exists() and any(folder.iterdir()):
        raise CannotDraft(f"{folder} is there and not empty; allowed: a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for target, source in {draft.target: draft.source for draft in drafts}.items():
        _copy(source, folder / target)
    names = next(iter(labels), ())
    if names:
        (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    lines = _write_lines(folder, drafts, method or METHOD_OF_TASK[task], bool(names))
    (folder / SPEC_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _part_inputs(drafts: Sequence[MemberDraft]) -> list[MemberDraft]:
    """Put the member's name before a tensor's that is another thing to another member: a request has one value of a name."""
    tables: dict[str, list[Mapping[str, object]]] = {}
    for draft in drafts:
        for name, table in draft.inputs.items():
            tables.setdefault(name, []).append(table)
    parted = {name for name, found in tables.items() if any(table != found[0] for table in found)}
    return [
        replace(
            draft,
            inputs={
                f"{draft.name}_{name}" if name in parted and table["kind"] == "tensor" else name: table
                for name, table in draft.inputs.items()
            },
        )
        for draft in drafts
    ]


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a directory; large files are linked where the file system can, for they are never changed in place."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, ignore=LEFT_OUT)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> str:
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return str(target)


def _write_lines(folder: Path, drafts: Sequence[MemberDraft], method: str, has_labels: bool) -> Iterator[str]:
    task = drafts[0].task
    yield "# An ensemble of twinfer: every member looks at the same request, and their fusion answers."
    yield f"# Check it with `twinfer validate {folder}`, serve it with `twinfer serve {folder}`."
    yield ""
    yield f'name = "{plain_name(folder.resolve().name, "-", "ensemble")}"'
    yield "version = 1                  # an integer; raise it when answers may change"
    yield f'task = "{task}"'
    if has_labels:
        yield 'labels = "labels.txt"        # one class a line, in the order of the models\' outputs'
    yield 'policy = "best_effort"       # answer with the members that are there; "require_all" would rather fail'
    for draft in drafts:
        yield ""
        yield f"[members.{draft.name}]"
        yield f'model = "{draft.model}"'
        for name, table in draft.inputs.items():
            yield f"[members.{draft.name}.input.{name}]     # the request's name for this input"
            yield from _write_table(
                table, {"kind": WHAT_KINDS_SAY[str(table["kind"])], "max_samples": "a list of texts to compare"}
            )
        if draft.output:
            yield f"[members.{draft.name}.output]"
            yield from _write_table(draft.output, {"kind": "what the output means", "select": "which of the outputs"})
    yield ""
    yield "[fusion]                     # docs/fusion.md lists the methods by task; `twinfer fit` learns one from labelled rows"
    notes = {"scale": "cosines times this, as the model was trained", "bias": "plus this", "activation": "one probability for each"}
    yield from _write_table({"method": method} | dict(drafts[0].fusion), notes)
    yield ""
    yield "[batching]"
    yield "max_batch_size = 16                # the most rows that fly together; a lone row never waits for others"


def _write_table(table: Mapping[str, object], notes: Mapping[str, str]) -> Iterator[str]:
    for key, value in table.items():
        text = f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        yield f"{text:<28} # {notes[key]}" if key in notes else text
