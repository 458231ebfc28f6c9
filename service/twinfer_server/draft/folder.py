"""The folder that drafts are written to: the models, their labels, and the file."""

import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..device import open_device
from ..errors import InvalidEnsemble, UntrustedCode, quote
from ..executor import load_ensemble
from ..fusion import METHODS
from ..inputs import InputLimits
from ..spec import SPEC_FILE
from ..trust import Trust
from .lines import comment, list_asked, write_lines
from .member import CannotDraft, MemberDraft, plain_name

METHOD_OF_TASK = {
    "classification": "log_opinion_pool", "multi_label": "log_opinion_pool", "embedding": "concatenation", "similarity": "cosine",
    "detection": "weighted_boxes", "tensor": "weighted_mean",
}  # fmt: skip
LEFT_OUT = (".git*", "onnx", "openvino", "*.h5", "*.msgpack", "*.ot", "*.md", "*.py")
PICKLES = "pytorch_model*.bin"
"""Left out where safetensors are beside them."""
MAX_MEMBERS = 8


def write_folder(folder: Path, drafts: Sequence[MemberDraft], method: str) -> None:
    """Write an ensemble folder of the drafts, fused by `method` ("" for what suits the task), or nothing; raises CannotDraft."""
    labels = _check(drafts, method)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CannotDraft(f"{folder} is there and not empty; allowed: a new folder")
        for draft in drafts:
            if draft.source.is_dir() and folder.resolve().is_relative_to(draft.source.resolve()):
                raise CannotDraft(f"{folder} is inside {draft.source}; allowed: a folder outside what is copied into it")
        with _making(folder):
            _copy_all(folder, drafts)
            for names in labels:
                (folder / "labels.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
            task = drafts[0].task
            lines = write_lines(folder, _part_inputs(drafts), method or METHOD_OF_TASK[task], bool(labels))
            (folder / SPEC_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (OSError, UnicodeError, ValueError, shutil.Error) as error:  # no space, no permission, a name that no file can have
        raise CannotDraft(
            f"{str(folder)!r} cannot be written: {error}; allowed: a new folder, of sources that can be read"
        ) from error


def check_folder(folder: Path, drafts: Sequence[MemberDraft]) -> str:
    """Load what was written, as `twinfer validate` will; return what is missing or wrong, which the file says then too, else "".

    Raises UntrustedCode for a program, such as a pickle: that is to be trusted first.
    """
    asked = "\n".join(list_asked(_part_inputs(drafts)))
    if not asked:
        try:
            device = open_device("cpu", streams=len(drafts))
            device.prepare_thread()
            load_ensemble(folder, device, Trust(), InputLimits())
        except UntrustedCode:
            raise
        except InvalidEnsemble as error:
            asked = str(error).replace(f"{folder / SPEC_FILE}: ", "")
    if asked:
        path = folder / SPEC_FILE
        lines = ["# Before it is served, this has to be mended:", *comment(asked), ""]
        path.write_text("\n".join(lines) + path.read_text(encoding="utf-8"), encoding="utf-8")
    return asked


def _check(drafts: Sequence[MemberDraft], method: str) -> set[tuple[str, ...]]:
    """Refuse drafts that do not go together; return the names of their classes, where they have some. Raises CannotDraft."""
    if not 1 <= len(drafts) <= MAX_MEMBERS:
        raise CannotDraft(f"--member: found {len(drafts)}; allowed: 1 to {MAX_MEMBERS}")
    if len({draft.task for draft in drafts}) > 1:
        found = ", ".join(f"{draft.name}: {draft.task}" for draft in drafts)
        raise CannotDraft(f"members: found different tasks ({found}); allowed: one task for all")
    labels = {draft.labels for draft in drafts if draft.labels}
    if len(labels) > 1:
        raise CannotDraft("members: their configurations name different classes, or in another order; allowed: the same")
    task = drafts[0].task
    methods = [name for name, entry in METHODS.items() if task in entry.tasks]
    if method and method not in methods:
        raise CannotDraft(f"--fusion: found {quote(method)}; allowed for task {task!r}: {', '.join(methods)}")
    return labels


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    """Make the folder and those above it; take away what was made where the body fails."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in made:
            path.rmdir()
        raise


def _copy_all(folder: Path, drafts: Sequence[MemberDraft]) -> None:
    for target, source in {draft.target: draft.source for draft in drafts}.items():
        if source.is_dir():
            shutil.copytree(source, folder / target, copy_function=_link, ignore=_leave_out)
        else:
            _copy(source, folder / target)
    for draft in drafts:
        for target, source in draft.files.items():
            _copy(source, folder / target)


def _leave_out(folder: str, names: list[str]) -> set[str]:
    """Return what of a directory no member reads."""
    patterns = [*LEFT_OUT, *([PICKLES] if fnmatch.filter(names, "*.safetensors") else [])]
    return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _link(source, target)


def _link(source: str | Path, target: str | Path) -> str:
    """Link a file where the file system can, for models are never changed in place; else copy it."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:  # another file system
        shutil.copy2(source, target)
    return str(target)


def _part_inputs(drafts: Sequence[MemberDraft]) -> list[MemberDraft]:
    """Put the member's name before a tensor's that is another thing to another member: a request has one value of a name."""
    tables = [(name, table) for draft in drafts for name, table in draft.inputs.items()]
    taken = {name for name, _ in tables}

    def name_input(draft: MemberDraft, name: str) -> str:
        table = draft.inputs[name]
        if table["kind"] != "tensor" or all(other != name or found == table for other, found in tables):
            return name
        parted = plain_name(f"{draft.name}_{name}", "_", "input", taken)
        taken.add(parted)
        return parted

    return [replace(draft, inputs={name_input(draft, name): table for name, table in draft.inputs.items()}) for draft in drafts]
