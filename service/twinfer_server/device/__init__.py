"""The device: lanes, events and staging, the same on a CPU and on CUDA. Knows no protobuf, no rows and no members."""

import re

import torch

from .allocator import FreedMemory, keep_freed_memory
from .cpu import CpuDevice, CpuEvent, HereLane, ThreadLane, usable_cores
from .cuda import CudaDevice
from .lane import Device, Event, Graph, Lane, Work

__all__ = [
    "CpuDevice",
    "CpuEvent",
    "CudaDevice",
    "Device",
    "Event",
    "FreedMemory",
    "Graph",
    "HereLane",
    "Lane",
    "ThreadLane",
    "Work",
    "keep_freed_memory",
    "open_device",
    "usable_cores",
]


def open_device(name: str, lanes: int) -> Device:
    """Open the device `name`: "cpu", "cuda", "cuda:1", or "auto" for the first GPU where there is one, else the CPU.

    `lanes` is the number of members that will compute side by side. Raises RuntimeError where CUDA is asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return CpuDevice(lanes)
    if torch.cuda.is_available() and re.fullmatch(r"cuda(:\d+)?", name):
        return CudaDevice(torch.device("cuda", torch.device(name).index or 0))
    allowed = ", cuda, cuda:N" if torch.cuda.is_available() else ""
    raise RuntimeError(f"device: found {name!r}, which is not there; allowed: auto, cpu{allowed}")
