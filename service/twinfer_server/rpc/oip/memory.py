"""The methods for shared memory, and those that this server does not have."""

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, NoReturn

import grpc

from ...errors import Unsupported
from ..boundary import Context, unary
from . import grpc_service_pb2 as pb
from .regions import Regions

Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]


def memory_handlers(regions: Regions, pool: Executor) -> Handlers:
    """Give the handlers of the methods for shared memory by name."""

    async def status(message: pb.SystemSharedMemoryStatusRequest, size_bytes: int, context: Context) -> Any:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in regions.list(message.name):
            found = response.regions[region.name]
            found.name, found.key, found.offset, found.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def register(message: pb.SystemSharedMemoryRegisterRequest, size_bytes: int, context: Context) -> Any:
        regions.register(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(message: pb.SystemSharedMemoryUnregisterRequest, size_bytes: int, context: Context) -> Any:
        regions.unregister(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(message: pb.CudaSharedMemoryStatusRequest, size_bytes: int, context: Context) -> Any:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_unregister(message: pb.CudaSharedMemoryUnregisterRequest, size_bytes: int, context: Context) -> Any:
        return pb.CudaSharedMemoryUnregisterResponse()

    return {
        "SystemSharedMemoryStatus": unary(pb.SystemSharedMemoryStatusRequest, status, pool),
        "SystemSharedMemoryRegister": unary(pb.SystemSharedMemoryRegisterRequest, register, pool),
        "SystemSharedMemoryUnregister": unary(pb.SystemSharedMemoryUnregisterRequest, unregister, pool),
        "CudaSharedMemoryStatus": unary(pb.CudaSharedMemoryStatusRequest, cuda_status, pool),
        "CudaSharedMemoryUnregister": unary(pb.CudaSharedMemoryUnregisterRequest, cuda_unregister, pool),
    }


def refusing_handlers(pool: Executor) -> Handlers:
    """Give the handlers of the methods that nobody can use, by name."""

    async def refuse_models(message: Any, size_bytes: int, context: Context) -> NoReturn:
        raise Unsupported("models cannot be loaded or unloaded; allowed: the ensemble that the server was started with")

    async def refuse_memory(message: Any, size_bytes: int, context: Context) -> NoReturn:
        raise Unsupported("CUDA memory cannot be shared; allowed: tensors in requests, or in system shared memory")

    return {
        "RepositoryModelLoad": unary(pb.RepositoryModelLoadRequest, refuse_models, pool),
        "RepositoryModelUnload": unary(pb.RepositoryModelUnloadRequest, refuse_models, pool),
        "CudaSharedMemoryRegister": unary(pb.CudaSharedMemoryRegisterRequest, refuse_memory, pool),
    }
