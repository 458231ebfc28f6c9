"""Loading: from a folder to an ensemble whose members have been checked and fit each other."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import CudaDevice, Device
from ..errors import InvalidEnsemble, outline, quote
from ..fusion import find_method
from ..inputs import InputKind, InputLimits, UpstreamInput, make_input
from ..inputs.image import ImageInput
from ..inputs.text import TextInput
from ..loaders import SharedStorages, load
from ..precision import convert
from ..reference import compare_images, compare_texts
from ..spec import (
    PREFIX,
    EnsembleSpec,
    MemberSpec,
    UpstreamInputSpec,
    check_classes,
    find_directory,
    read_file,
    read_labels,
    read_spec,
)
from ..trust import Trust
from .bounds import bound_inputs
from .checks import check_member, check_positions, embed_texts
from .ensemble import Ensemble
from .fusion_versions import FusionBuilder
from .member import Member
from .sampling import make_calibration_samples

logger = logging.getLogger(__name__)


def load_ensemble(folder: Path, device: Device, trust: Trust, limits: InputLimits, spec: EnsembleSpec | None = None) -> Ensemble:
    """Load and check the ensemble in `folder`; raises InvalidEnsemble. Call it on a thread that the device has prepared.

    `spec` is what to load instead of what the folder's file says, of the same members.
    """
    spec = spec or read_spec(folder)
    labels = read_labels(folder, spec)
    check_classes(folder, spec, labels)
    find_method(spec)
    if spec.fusion.fitted and (spec.fusion.weights or spec.fusion.temperatures):
        raise InvalidEnsemble("fusion.fitted: found beside weights or temperatures; allowed: alone, it brings its own")
    members: list[Member] = []
    storages = SharedStorages()
    for name in spec.members:
        members.append(_load_member(name, spec, folder, members, _Site(device, trust, limits, storages)))
    with torch.inference_mode():
        texts = _embed_texts(spec, folder, members)
    ensemble = Ensemble(folder, spec, labels, members, FusionBuilder(folder, members, texts, device), device)
    if labels and spec.task != "detection" and len(labels) != ensemble.classes:
        allowed = f"one for each of the {ensemble.classes} {'texts' if spec.task == 'similarity' else 'classes'}"
        raise InvalidEnsemble(f"labels: {len(labels)} labels; allowed: {allowed if ensemble.classes else 'none for this task'}")
    return ensemble


class _Site:
    """What all members of an ensemble are loaded with."""

    def __init__(self, device: Device, trust: Trust, limits: InputLimits, storages: SharedStorages) -> None:
        self.device, self.trust, self.limits, self.storages = device, trust, limits, storages


def _load_member(name: str, spec: EnsembleSpec, folder: Path, before: Sequence[Member], site: _Site) -> Member:
    """Load one member, behind those that stand `before` it, check it and give it its precision."""
    member_spec = spec.members[name]
    device = _find_device(name, member_spec, site.device)
    inputs: list[InputKind[Any] | UpstreamInput] = []
    for input_name, input_spec in member_spec.input.items():
        if isinstance(input_spec, UpstreamInputSpec):
            inputs.append(_make_upstream_input(f"members.{name}.input.{input_name}", input_name, input_spec, before))
        else:
            inputs.append(make_input(name, input_name, input_spec, folder, site.limits, device.torch_device))
    model = load(member_spec, folder, device.torch_device, site.trust, f"members.{name}")
    member = Member(
        len(before), name, member_spec, model, inputs, max_batch_size=spec.batching.max_batch_size,
        extra_outputs=_list_extra_outputs(name, spec), is_deterministic=spec.deterministic, device=device,
    )  # fmt: skip
    member.compared = _compare(name, member, folder)
    with torch.inference_mode():
        bound_inputs(member)
        check_member(member, spec.task)
        if (member_spec.precision, member_spec.acceleration) != ("fp32", "eager"):
            member.converted = convert(member_spec, model, make_calibration_samples(member), f"members.{name}")
        if spec.deterministic:
            check_positions(member)
    if device is site.device:
        member.shared_bytes = site.storages.share(member.model)
    for buffers in member.buffers:
        buffers.make_host_outputs(device, member.output_shape)
    return member


def _compare(name: str, member: Member, folder: Path) -> tuple[str, ...]:
    """Compare a Hugging Face member's inputs with its library's; returns what was done, raises InvalidEnsemble."""
    if not member.spec.model.startswith(PREFIX):
        return ()
    directory, lines = find_directory(folder, member.spec.model), []
    for kind in member.inputs:
        key = f"members.{name}.input.{kind.name}"
        if isinstance(kind, TextInput):
            lines.append(compare_texts(key, kind, directory))
        elif isinstance(kind, ImageInput):
            lines.append(compare_images(key, kind, directory))
        else:
            lines.append(f"{key}: not compared, the library prepares no tensors")
    for line in lines:
        logger.info("%s", line)
    return tuple(lines)


def _find_device(name: str, spec: MemberSpec, device: Device) -> Device:
    """Find where a member computes: on the ensemble's device, or on another GPU; raises InvalidEnsemble where that is not there."""
    if spec.device in (None, str(device.torch_device)):
        return device
    gpus = [f"'cuda:{index}'" for index in range(torch.cuda.device_count())] if device.torch_device.type == "cuda" else []
    if f"'{spec.device}'" not in gpus:
        allowed = ", ".join(gpus) or f"none, the ensemble is on {device.torch_device}"
        raise InvalidEnsemble(f"members.{name}.device: found {spec.device!r}; allowed: {allowed}")
    return CudaDevice(torch.device(spec.device))


def _list_extra_outputs(name: str, spec: EnsembleSpec) -> list[int | str]:
    """List the outputs of the member `name` that others take, each once."""
    inputs = [input_spec for member in spec.members.values() for input_spec in member.input.values()]
    return list(dict.fromkeys(one.select for one in inputs if isinstance(one, UpstreamInputSpec) and one.member == name))


def _make_upstream_input(key: str, name: str, spec: UpstreamInputSpec, before: Sequence[Member]) -> UpstreamInput:
    """Make the input that takes the output of a member `before` this one; raises InvalidEnsemble."""
    upstream = next((member for member in before if member.name == spec.member), None)
    if upstream is None:
        allowed = ", ".join(repr(member.name) for member in before) or "none, this is the first member"
        raise InvalidEnsemble(f"{key}.member: found {quote(spec.member)}; allowed: a member before this one: {allowed}")
    shape = upstream.extra_shapes[upstream.extra_outputs.index(spec.select)]
    return UpstreamInput(name, upstream.index, spec.select, shape, upstream.samples_per_request)


def _embed_texts(spec: EnsembleSpec, folder: Path, members: Sequence[Member]) -> Tensor | None:
    """Embed the lines of `fusion.texts`, which requests without texts are compared with; None where the ensemble brings none."""
    if spec.fusion.texts is None:
        return None
    query = spec.fusion.query or next(iter(spec.members))
    member = next((member for member in members if member.name != query and member.spec.output.kind == "embedding"), None)
    if member is None or len(member.inputs) != 1 or member.spec.input[member.inputs[0].name].kind != "text":
        raise InvalidEnsemble("fusion.texts: no member takes a text, and nothing else, to compare with the query's embedding")
    try:
        lines = read_file(folder / spec.fusion.texts).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        found = f"{quote(spec.fusion.texts)}, which cannot be read ({outline(error)})"
        raise InvalidEnsemble(f"fusion.texts: found {found}; allowed: UTF-8") from None
    if not lines:
        raise InvalidEnsemble(f"fusion.texts: found no line in {quote(spec.fusion.texts)}; allowed: one text a line")
    return embed_texts(member, lines)
