"""What `twinfer fit` has learnt, as one file of the ensemble's folder: a head's tensors, and all else in the file's metadata."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InvalidEnsemble, outline, quote
from ..spec import EnsembleSpec
from ..spec.ensemble import Probability, Temperature, Weight
from ..spec.files import Name

FITTED_FILE = "fusion.safetensors"
REMEDY = "fit again, or remove fitted from [fusion]"
_KEY = "twinfer_fusion_1"
"""The one key of the metadata, for several are written in any order; its value is JSON. The number is the format's."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted fusion.

    `digests` are the sha256 of the members' model files that it was fitted to, "" where a model has no one file; `weights` and
    `temperatures` go by member name, too, and are empty where the method takes none. `hidden` is the width of the stacking head's
    hidden layer, 0 for a linear one, and `tensors` its state; empty where the method is another. `gate` is a cascade's, `sharpness`
    an opinion pool's (see `sharpen`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)

    method: str
    digests: Mapping[Name, Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]]
    weights: Mapping[Name, Weight]
    temperatures: Mapping[Name, Temperature]
    hidden: Annotated[int, Field(ge=0, le=65536)] = 0
    gate: Probability | None = None
    sharpness: Annotated[FiniteFloat, Field(ge=-100, le=100)] = 0.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


_METADATA = TypeAdapter(Fitted)


def write_fitted(folder: Path, fitted: Fitted) -> None:
    """Write `fusion.safetensors`; a reader finds the old file or the new one, whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in fitted.tensors.items()}
    metadata = _METADATA.dump_json(fitted, exclude={"tensors"}).decode()
    beside = folder / f".{FITTED_FILE}.new"
    beside.write_bytes(save(tensors, {_KEY: metadata}))
    os.replace(beside, folder / FITTED_FILE)


def read_fitted(folder: Path, spec: EnsembleSpec, digests: Mapping[str, str]) -> Fitted:
    """Read the fitted fusion that the spec names, or `fusion.safetensors`; `digests` are those of the members' models now.

    Raises InvalidEnsemble where the file cannot be read, or was fitted to another method, other members or other models.
    """
    path = folder / (spec.fusion.fitted or FITTED_FILE)
    fitted = _read(path)
    method, members = spec.fusion.method, sorted(spec.members)
    if fitted.method != method:
        found = f"found {method!r}, but {path} was fitted for {quote(fitted.method)}"
        raise InvalidEnsemble(f"fusion.method: {found}; allowed: the same method; {REMEDY}")
    if sorted(fitted.digests) != members:
        raise InvalidEnsemble(f"{path}: digests: found the members {sorted(fitted.digests)}; allowed: {members}; {REMEDY}")
    for key, numbers in (("weights", fitted.weights), ("temperatures", fitted.temperatures)):
        if unknown := set(numbers) - set(members):
            raise InvalidEnsemble(f"{path}: {key}: found {sorted(unknown)}; allowed: {members}; {REMEDY}")
    for name, digest in fitted.digests.items():
        if digest != digests[name]:
            raise InvalidEnsemble(
                f"{path}: digests.{name}: fitted to a model with sha256 {digest or 'unknown'}, but the member {name!r} has now "
                f"{digests[name] or 'one without a file'}; {REMEDY}"
            )
    return fitted


def read_fitted_method(folder: Path) -> str:
    """Read which method the folder's `fusion.safetensors` was fitted for; raises InvalidEnsemble."""
    return _read(folder / FITTED_FILE).method


def use_fitted(spec: EnsembleSpec, fitted: Fitted | None) -> EnsembleSpec:
    """Return the spec with the fitted weights and temperatures, where its `[fusion]` has none of its own."""
    if fitted is None:
        return spec
    weights, temperatures = spec.fusion.weights or fitted.weights, spec.fusion.temperatures or fitted.temperatures
    update = {"weights": dict(weights), "temperatures": dict(temperatures)}
    return spec.model_copy(update={"fusion": spec.fusion.model_copy(update=update)})


def _read(path: Path) -> Fitted:
    """Read a file as `write_fitted` writes it; raises InvalidEnsemble."""
    if not path.is_file():
        raise InvalidEnsemble(f"{path}: no such file; `twinfer fit` writes it")
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InvalidEnsemble(f"{path}: cannot be read: {outline(error)}; {REMEDY}") from None
    try:
        return replace(_METADATA.validate_json(metadata.get(_KEY, "")), tensors=tensors)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = quote(".".join(map(str, fault["loc"])))[1:-1] or _KEY
        raise InvalidEnsemble(f"{path}: {key}: found {quote(fault['input'])}; allowed: {fault['msg']}; {REMEDY}") from None
