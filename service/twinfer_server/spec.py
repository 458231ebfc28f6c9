"""What an ensemble folder says: `ensemble.toml`, parsed and checked before anything is loaded."""

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .errors import InvalidEnsemble, quote

SPEC_FILE = "ensemble.toml"
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]


def find_file(folder: Path, value: str) -> Path:
    """Give the path of a file of the folder; raises ValueError where it leaves the folder or is not there."""
    path = folder / value
    try:
        path = path.resolve()
        is_inside, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL: no name that a file can have
        is_inside, is_file = True, False
    if not is_inside:
        raise ValueError(f"the path leaves the ensemble folder: {quote(value)}; allowed: a file inside it")
    if not is_file:
        raise ValueError(f"no such file: {quote(value)}; allowed: a file inside the ensemble folder")
    return path


def _check_file(value: str, info: ValidationInfo) -> str:
    find_file((info.context or {})["folder"], value)
    return value


FolderFile = Annotated[str, AfterValidator(_check_file)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ImageInputSpec(_Strict):
    """An image: decoded to uint8 [height, width, channels], resized; on the device scaled to 0..1 and normalised."""

    kind: Literal["image"]
    size: Annotated[list[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=2, max_length=2)]
    """Height and width, in pixels, that the member takes."""
    color: Literal["rgb", "gray"] = "rgb"
    resize: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: list[FiniteFloat] = []
    """Subtracted per channel after scaling to 0..1; empty means 0."""
    std: list[Annotated[FiniteFloat, Field(gt=0)]] = []
    """Divided by, per channel; empty means 1."""
    required: bool = False

    @property
    def channels(self) -> int:
        """3 or 1."""
        return 3 if self.color == "rgb" else 1

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                allowed = f"none, or {self.channels} for color {self.color!r}"
                raise ValueError(f"{key} has {len(values)} values; allowed: {allowed}")
        return self


class TextInputSpec(_Strict):
    """A text: token ids int64 [tokens], cut at `max_tokens` and padded to the flight's token bucket."""

    kind: Literal["text"]
    tokenizer: FolderFile
    max_tokens: Annotated[int, Field(ge=1, le=32768)]
    mask: bool = False
    """Whether the member takes (ids, mask), mask int64: 1 token, 0 padding. Without it, it always sees `max_tokens`."""
    pad_id: Annotated[int, Field(ge=0)] = 0
    required: bool = False


class TensorInputSpec(_Strict):
    """A ready tensor: one sample of this dtype and shape."""

    kind: Literal["tensor"]
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
    shape: list[Annotated[int, Field(ge=1)]]
    required: bool = False


InputSpec = Annotated[ImageInputSpec | TextInputSpec | TensorInputSpec, Discriminator("kind")]


class OutputSpec(_Strict):
    """Which of a member's outputs counts, and what it means."""

    kind: Literal["logits", "probabilities", "embedding"] = "logits"
    select: int | str = 0
    """The output's position in a tuple, or its name in a mapping."""


class MemberSpec(_Strict):
    """One model: where it comes from, what it takes and what it gives."""

    model: Annotated[str, Field(min_length=1)]
    """A file of the folder, or `python:module:attribute`; the suffix or prefix picks the loader."""
    precision: Literal["fp32"] = "fp32"
    capture: bool = True
    """Whether the member may be captured as a CUDA graph."""
    priority: Literal["normal", "high"] = "normal"
    """A high one's CUDA stream goes before the others' where they compete for the GPU; a CPU knows no such thing."""
    input: Annotated[dict[Name, InputSpec], Field(min_length=1)]
    """By input name; the model is called with the inputs in this order."""
    output: OutputSpec = OutputSpec()


class FusionSpec(_Strict):
    """How the members' outputs become one; the method is found in the table of `twinfer_server.fusion`."""

    method: str
    weights: dict[Name, Annotated[FiniteFloat, Field(ge=0, le=1e6)]] = {}
    """By member; normalised to sum to 1. Empty means equal weights."""


class BatchingSpec(_Strict):
    """How rows share flights."""

    max_rows: Annotated[int, Field(ge=1, le=4096)] = 32
    max_delay_ms: Annotated[FiniteFloat, Field(ge=0, le=1000)] = 0.0
    """How long a lone row may wait for company when the lanes are idle; 0 launches at once."""


class EnsembleSpec(_Strict):
    """An `ensemble.toml`, checked."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=2**63)]
    task: Literal["classification", "embedding"]
    labels: FolderFile | None = None
    policy: Literal["require_all", "best_effort"] = "require_all"
    plan: Literal["auto", "serial", "lanes", "graph"] = "auto"
    deterministic: bool = False
    """Run every flight at one bucket, so that a row's answer is the same to the bit whatever its neighbours."""
    members: Annotated[dict[Name, MemberSpec], Field(min_length=1, max_length=8)]
    fusion: FusionSpec
    batching: BatchingSpec = BatchingSpec()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        unknown = set(self.fusion.weights) - set(self.members)
        if unknown:
            raise ValueError(f"fusion.weights names {sorted(unknown)}; allowed: the members {sorted(self.members)}")
        if self.fusion.weights and not math.fsum(self.fusion.weights.values()) > 0:
            raise ValueError("fusion.weights are all 0; allowed: at least one above 0")
        kinds: dict[str, str] = {}
        for member, name, spec in self.walk_inputs():
            if kinds.setdefault(name, spec.kind) != spec.kind:
                raise ValueError(
                    f"members.{member}.input.{name} is of kind {spec.kind!r}; allowed: {kinds[name]!r}, as another member has it"
                )
        return self

    def walk_inputs(self) -> Iterator[tuple[str, str, ImageInputSpec | TextInputSpec | TensorInputSpec]]:
        """Yield (member name, input name, input spec), in the order of the file."""
        for member, spec in self.members.items():
            for name, input_spec in spec.input.items():
                yield member, name, input_spec

    def member_weights(self) -> list[float]:
        """Give the members' weights in the fusion, in their order, summing to 1."""
        weights = self.fusion.weights or dict.fromkeys(self.members, 1.0)
        total = math.fsum(weights.values())
        return [weights.get(name, 0.0) / total for name in self.members]


def read_spec(folder: Path) -> EnsembleSpec:
    """Read and check `ensemble.toml` in `folder`; raises InvalidEnsemble that lists every fault with its key's path."""
    path = folder / SPEC_FILE
    if not path.is_file():
        raise InvalidEnsemble(f"{folder}: no {SPEC_FILE} here; allowed: an ensemble folder")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # tomllib nests, and reads long numbers, until Python stops it
        raise InvalidEnsemble(f"{path}: not TOML: {error}") from error
    try:
        return EnsembleSpec.model_validate(document, context={"folder": folder})
    except ValidationError as error:
        raise InvalidEnsemble("\n".join(f"{path}: {line}" for line in _describe(error))) from None


def read_labels(folder: Path, spec: EnsembleSpec) -> tuple[str, ...]:
    """Read the class labels, one a line, by index; empty where the ensemble has none; raises InvalidEnsemble."""
    if spec.labels is None:
        return ()
    path = folder / spec.labels
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidEnsemble(f"{folder / SPEC_FILE}: labels: {path} cannot be read: {error}; allowed: UTF-8") from error


_TOML_WORDS = {
    "missing": "a value; the key is required",
    "extra_forbidden": "no key of this name",
    "model_type": "a table",
    "dict_type": "a table",
    "model_attributes_type": "a table",
    "list_type": "an array",
}
"""What is allowed, where pydantic would speak of Python rather than of TOML."""


def _describe(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path, kind, value = list(fault["loc"]), fault["type"], fault["input"]
        if len(path) > 4 and path[2] == "input":
            del path[4]  # pydantic names the kind that it picked; the file has no such key
        found = quote(value) if isinstance(value, str) else quote(value)[1:-1]
        allowed = _TOML_WORDS.get(kind) or fault["msg"].removeprefix("Input should be ")
        if kind == "missing":
            found = "nothing"
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            path.append("kind")
            found, allowed = quote(value["kind"]) if "kind" in value else "nothing", "'image', 'text', 'tensor'"
        # As TOML writes it: a key of other characters in quotes, so that none breaks the line or fills the screen.
        parts = [part if re.fullmatch(r"[\w[\]-]{1,64}", part) else quote(part) for part in map(str, path)]
        key = ".".join(parts) + (": " if path else "")
        # A value_error is in our own words, which say found and allowed themselves.
        yield key + (str(fault["ctx"]["error"]) if kind == "value_error" else f"found {found}; allowed: {allowed}")
