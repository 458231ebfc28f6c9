"""The device: streams, events and staging memory, the same on a CPU and on CUDA. Knows no protobuf, no requests, no members."""

import re

import torch

from .cpu import CpuDevice, CpuEvent, InlineStream, ThreadStream, usable_cores
from .cuda import CudaDevice
from .device import CannotCapture, Device, Event, Execution, Graph, Stream, UnrecordedEvent, Work

__all__ = [
    "CannotCapture",
    "CpuDevice",
    "CpuEvent",
    "CudaDevice",
    "Device",
    "Event",
    "Execution",
    "Graph",
    "InlineStream",
    "Stream",
    "ThreadStream",
    "UnrecordedEvent",
    "Work",
    "open_device",
    "usable_cores",
]


def open_device(name: str, streams: int) -> Device:
    """Open the device `name`: "cpu", "cuda", "cuda:1", or "auto" for the first GPU where there is one, else the CPU.

    `streams` is the number of members that may compute side by side. Raises RuntimeError where CUDA is asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return CpuDevice(streams)
    if torch.cuda.is_available() and re.fullmatch(r"cuda(:\d+)?", name):
        return CudaDevice(torch.device("cuda", torch.device(name).index or 0))
    allowed = ", cuda, cuda:N" if torch.cuda.is_available() else ""
    raise RuntimeError(f"device: found {name!r}, which is not there; allowed: auto, cpu{allowed}")
