"""What `twinfer fit` has learnt, as two files of the ensemble's folder: `fusion.json` to read, `fusion.safetensors` beside it."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import InvalidEnsemble, quote
from ..spec import EnsembleSpec
from ..spec.files import Name, Strict

FITTED_FILE = "fusion.json"
TENSORS_FILE = "fusion.safetensors"
REMEDY = "fit again, or remove fitted from [fusion]"

_HEAD = "head."


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A fitted fusion.

    `digests` are the sha256 of the members' model files that it was fitted to, "" where a model has no one file; `weights` and
    `temperatures` go by member name, too, and are empty where the method takes none. `hidden` is the width of the stacking head's
    hidden layer, 0 for a linear one, and `tensors` its state; empty where the method is another. `gate` is a cascade's, `sharpness`
    an opinion pool's (see `sharpen`).
    """

    method: str
    digests: Mapping[str, str]
    weights: Mapping[str, float]
    temperatures: Mapping[str, float]
    hidden: int = 0
    gate: float | None = None
    sharpness: float = 0.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class _Tensors(Strict):
    file: Annotated[str, Field(pattern=r"^[\w-]+\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _File(Strict):
    format: Literal[1]
    method: str
    digests: dict[Name, Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]]
    weights: dict[Name, Annotated[FiniteFloat, Field(ge=0)]]
    temperatures: dict[Name, Annotated[FiniteFloat, Field(ge=0.001, le=1000)]]
    hidden: Annotated[int, Field(ge=0, le=65536)]
    gate: Annotated[FiniteFloat, Field(ge=0, le=1)] | None
    sharpness: Annotated[FiniteFloat, Field(ge=-100, le=100)]
    tensors: _Tensors


def write_fitted(folder: Path, fitted: Fitted) -> None:
    """Write `fusion.json` and `fusion.safetensors`; a reader finds the old pair, the new pair, or two that do not belong together.

    The second holds the head's state, and the weights and temperatures as float64 in the order of the first.
    """
    content = save(_all_tensors(fitted))
    document = _File(
        format=1,
        method=fitted.method,
        digests=dict(fitted.digests),
        weights=dict(fitted.weights),
        temperatures=dict(fitted.temperatures),
        hidden=fitted.hidden,
        gate=fitted.gate,
        sharpness=fitted.sharpness,
        tensors=_Tensors(file=TENSORS_FILE, sha256=hashlib.sha256(content).hexdigest()),
    )
    _replace(folder / TENSORS_FILE, content)
    _replace(folder / FITTED_FILE, (json.dumps(document.model_dump(), indent=2) + "\n").encode())


def read_fitted(folder: Path, spec: EnsembleSpec, digests: Mapping[str, str]) -> Fitted:
    """Read the fitted fusion that the spec names, or `fusion.json`; `digests` are those of the members' models as they are now.

    Raises InvalidEnsemble where a file cannot be read, the two do not belong together, or the fusion was fitted to another method,
    other members or other models.
    """
    path = folder / (spec.fusion.fitted or FITTED_FILE)
    try:
        document = _File.model_validate_json(path.read_bytes())
        content = (path.parent / document.tensors.file).read_bytes()
    except ValidationError as error:
        raise _refuse(path, error) from None
    except OSError as error:
        raise InvalidEnsemble(f"{path}: cannot be read: {error}; {REMEDY}") from None
    if hashlib.sha256(content).hexdigest() != document.tensors.sha256:
        raise InvalidEnsemble(f"{path}: tensors: {document.tensors.file} is not the file that was written with it; {REMEDY}")
    _check_fit(path, document, spec, digests)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise InvalidEnsemble(f"{path}: tensors: {document.tensors.file} cannot be read: {error}; {REMEDY}") from None
    fitted = Fitted(
        document.method, document.digests, document.weights, document.temperatures, document.hidden, document.gate,
        document.sharpness, {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)},
    )  # fmt: skip
    for name, expected in _all_tensors(fitted).items():
        if name not in tensors or not torch.equal(tensors[name], expected):
            raise InvalidEnsemble(f"{path}: {name}: other numbers than {document.tensors.file} has; {REMEDY}")
    return fitted


def read_fitted_method(folder: Path) -> str:
    """Read which method the folder's `fusion.json` was fitted for; raises InvalidEnsemble."""
    path = folder / FITTED_FILE
    try:
        return _File.model_validate_json(path.read_bytes()).method
    except OSError as error:
        raise InvalidEnsemble(f"{path}: cannot be read: {error.strerror}; `twinfer fit` writes it") from None
    except ValidationError as error:
        raise _refuse(path, error) from None


def use_fitted(spec: EnsembleSpec, fitted: Fitted | None) -> EnsembleSpec:
    """Give the spec the fitted weights and temperatures, where its `[fusion]` has none of its own."""
    if fitted is None:
        return spec
    fusion = spec.fusion.model_copy(
        update={
            "weights": spec.fusion.weights or dict(fitted.weights),
            "temperatures": spec.fusion.temperatures or dict(fitted.temperatures),
        }
    )
    return spec.model_copy(update={"fusion": fusion})


def _refuse(path: Path, error: ValidationError) -> InvalidEnsemble:
    fault = error.errors(include_url=False)[0]
    key = ".".join(map(str, fault["loc"])) or "the whole"
    return InvalidEnsemble(f"{path}: {key}: found {quote(fault['input'])}; allowed: {fault['msg']}; {REMEDY}")


def _check_fit(path: Path, document: _File, spec: EnsembleSpec, digests: Mapping[str, str]) -> None:
    if document.method != spec.fusion.method:
        raise InvalidEnsemble(
            f"fusion.method: found {spec.fusion.method!r}, but {path} was fitted for {quote(document.method)}; "
            f"allowed: the same method; {REMEDY}"
        )
    if set(document.digests) != set(spec.members):
        raise InvalidEnsemble(
            f"{path}: digests: fitted to the members {sorted(document.digests)}; allowed: {sorted(spec.members)}; {REMEDY}"
        )
    if unknown := {*document.weights, *document.temperatures} - set(spec.members):
        raise InvalidEnsemble(f"{path}: names {sorted(unknown)}; allowed: {sorted(spec.members)}; {REMEDY}")
    for name, digest in document.digests.items():
        if digest != digests[name]:
            raise InvalidEnsemble(
                f"{path}: digests.{name}: fitted to a model with sha256 {digest or 'unknown'}, but the member {name!r} has now "
                f"{digests[name] or 'one without a file'}; {REMEDY}"
            )


def _all_tensors(fitted: Fitted) -> dict[str, Tensor]:
    tensors = {f"{_HEAD}{name}": tensor.detach().cpu().contiguous() for name, tensor in fitted.tensors.items()}
    for name, values in (("weights", fitted.weights), ("temperatures", fitted.temperatures)):
        tensors[name] = torch.tensor(list(values.values()), dtype=torch.float64)
    return tensors


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    os.replace(beside, path)
