"""Reflection, under both of its names: grpcio-reflection registers v1alpha only, and newer tools ask for v1 first."""

from collections.abc import Sequence

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ..http2 import Server

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
SERVICE = "ServerReflection"
METHOD = "ServerReflectionInfo"


def add_reflection(server: Server, files: Sequence[FileDescriptor]) -> None:
    """Let callers ask the server for the services in `files` and their messages, and for nothing else that is in the process."""
    names = [service.full_name for file in files for service in file.services_by_name.values()]
    versions = [f"{V1}.{SERVICE}", f"{V1ALPHA}.{SERVICE}"]
    servicer = reflection.aio.ReflectionServicer((*names, *versions), _make_pool((*files, reflection_pb2.DESCRIPTOR)))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in versions:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {METHOD: handler}),))


def _make_pool(files: Sequence[FileDescriptor]) -> DescriptorPool:
    """Make a pool of `files`, what they import, and reflection's v1, whose messages are v1alpha's under another name."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for imported in file.dependencies:
            add(imported)
        pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    pool.AddSerializedFile(_rename(FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)).SerializeToString())
    return pool


def _rename(file: FileDescriptorProto) -> FileDescriptorProto:
    """Turn the description of v1alpha into that of v1."""
    file.name = f"{V1.replace('.', '/')}/reflection.proto"
    file.package = V1
    for message in file.message_type:
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(V1ALPHA, V1)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(V1ALPHA, V1)
            method.output_type = method.output_type.replace(V1ALPHA, V1)
    return file
