"""Loading: from a folder to an ensemble whose members have been probed and fit each other."""

from pathlib import Path

import torch

from ..device import CudaDevice, Device
from ..errors import InvalidEnsemble
from ..fusion import find_method
from ..inputs import InputLimits, make_input
from ..loaders import SharedStorages, load
from ..spec import EnsembleSpec, FedInputSpec, MemberSpec, check_classes, read_labels, read_spec
from ..trust import Trust
from .chain import find_taps, make_fed_input
from .crew import Crew, FusionBuilder
from .ensemble import Ensemble
from .meaning import check_meaning
from .member import Member
from .probe import check_places, probe_member
from .sampling import make_calibration_samples
from .texts import embed_texts


def load_ensemble(
    folder: Path, device: Device, trust: Trust, limits: InputLimits, spec: EnsembleSpec | None = None
) -> Ensemble:  # fmt: skip
    """Load and probe the ensemble in `folder`; raises InvalidEnsemble. Call it on a thread that the device has prepared.

    `spec` is what to load instead of what the folder's file says, of the same members.
    """
    spec = spec or read_spec(folder)
    find_method(spec)
    if spec.fusion.fitted and (spec.fusion.weights or spec.fusion.temperatures):
        raise InvalidEnsemble("fusion.fitted: found beside weights or temperatures; allowed: alone, it brings its own")
    labels = read_labels(folder, spec)
    check_classes(folder, spec, labels)
    members: list[Member] = []
    storages = SharedStorages()
    for index, (name, member_spec) in enumerate(spec.members.items()):
        inputs = [
            make_fed_input(f"members.{name}.input.{input_name}", input_name, input_spec, members)
            if isinstance(input_spec, FedInputSpec)
            else make_input(name, input_name, input_spec, folder, limits)
            for input_name, input_spec in member_spec.input.items()
        ]
        place = _find_place(name, member_spec, device)
        for kind in inputs:
            kind.to(place.torch_device)
        model = load(member_spec, folder, place.torch_device, trust, f"members.{name}")
        member = Member(
            index, name, member_spec, model, inputs, max_batch_size=spec.batching.max_batch_size, taps=find_taps(name, spec),
            is_deterministic=spec.deterministic, device=place,
        )  # fmt: skip
        with torch.inference_mode():
            check_meaning(member, spec.task, probe_member(member))
            if member_spec.is_tuned:
                member.convert(make_calibration_samples(member))
            if spec.deterministic:
                check_places(member)
        member.shared_bytes = storages.share(member.model) if place is device else 0
        for slot in member.slots:
            slot.make_host_outputs(place, member.output_shape)
        members.append(member)
    with torch.inference_mode():
        texts = embed_texts(spec, folder, members)
    builder = FusionBuilder(folder, members, texts, device)
    ensemble = Ensemble(folder, spec, labels, Crew(tuple(members), builder.build(1, spec)), builder, device)
    if labels and spec.task != "detection" and len(labels) != ensemble.classes:
        allowed = f"one for each of the {ensemble.classes} {'texts' if spec.task == 'similarity' else 'classes'}"
        raise InvalidEnsemble(f"labels: {len(labels)} labels; allowed: {allowed if ensemble.classes else 'none for this task'}")
    return ensemble


def _find_place(name: str, spec: MemberSpec, device: Device) -> Device:
    """Find where a member computes: on the ensemble's device, or on another GPU; raises InvalidEnsemble where that is not there."""
    if spec.device in (None, str(device.torch_device)):
        return device
    gpus = [f"'cuda:{index}'" for index in range(torch.cuda.device_count())] if device.torch_device.type == "cuda" else []
    if f"'{spec.device}'" not in gpus:
        allowed = ", ".join(gpus) or f"none, the ensemble is on {device.torch_device}"
        raise InvalidEnsemble(f"members.{name}.device: found {spec.device!r}; allowed: {allowed}")
    return CudaDevice(torch.device(spec.device))
