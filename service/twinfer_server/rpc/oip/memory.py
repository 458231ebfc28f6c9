"""The methods for shared memory, and those that this server does not have."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from google.protobuf.message import Message

from ...errors import Unsupported
from . import grpc_service_pb2 as pb
from .regions import Regions

Methods = Mapping[str, Callable[[Any], Message]]
"""Methods by name that answer their request at once."""


def memory_methods(regions: Regions) -> Methods:
    """Give the methods for shared memory; there is none of CUDA's."""

    def status(message: pb.SystemSharedMemoryStatusRequest) -> Message:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in regions.list(message.name):
            found = response.regions[region.name]
            found.name, found.key, found.offset, found.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    def register(message: pb.SystemSharedMemoryRegisterRequest) -> Message:
        regions.register(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def unregister(message: pb.SystemSharedMemoryUnregisterRequest) -> Message:
        regions.unregister(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    return {
        "SystemSharedMemoryStatus": status,
        "SystemSharedMemoryRegister": register,
        "SystemSharedMemoryUnregister": unregister,
        "CudaSharedMemoryStatus": lambda message: pb.CudaSharedMemoryStatusResponse(),
        "CudaSharedMemoryUnregister": lambda message: pb.CudaSharedMemoryUnregisterResponse(),
    }


def _refuse_models(message: Any) -> NoReturn:
    raise Unsupported("models cannot be loaded or unloaded; allowed: the ensemble that the server was started with")


def _refuse_memory(message: Any) -> NoReturn:
    raise Unsupported("CUDA memory cannot be shared; allowed: tensors in requests, or in system shared memory")


REFUSED: Methods = {
    "RepositoryModelLoad": _refuse_models,
    "RepositoryModelUnload": _refuse_models,
    "CudaSharedMemoryRegister": _refuse_memory,
}
"""The methods that nobody can use."""
