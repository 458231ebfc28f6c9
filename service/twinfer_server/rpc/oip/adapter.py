"""The ensemble's message under the names that `models` still has for its parts. It goes when `models` takes the message itself."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from twinfer.v1 import ensemble_pb2, tensor_pb2

Description = InputDescription = MemberDescription = Any


def adapt(ensemble: ensemble_pb2.Ensemble) -> Description:
    """Give the message's facts under their earlier names."""
    names = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}

    def dtype(number: int) -> str:
        name = tensor_pb2.DataType.Name(number).removeprefix("DATA_TYPE_")
        return str(np.dtype(names.get(name, name.lower())))

    inputs = [
        SimpleNamespace(
            name=spec.name, kind=spec.kind, dtype=dtype(spec.dtype), member_shape=tuple(spec.native_shape), members=spec.members,
            is_needed=spec.always_required, is_optional=spec.optional, max_samples=spec.max_samples, is_pair=spec.pair,
        )
        for spec in ensemble.inputs
    ]  # fmt: skip
    members = [
        SimpleNamespace(
            name=one.name, loader=one.loader, output=one.output, output_shape=tuple(one.output_shape), upstream=one.upstream
        )
        for one in ensemble.members
    ]
    return SimpleNamespace(
        name=ensemble.name, version=ensemble.version, task=ensemble_pb2.Task.Name(ensemble.task).removeprefix("TASK_").lower(),
        inputs=inputs, members=members, fused_shape=tuple(ensemble.output_shape),
        max_batch_size=ensemble.limits.max_batch_size, limits=ensemble.limits,
    )  # fmt: skip
