"""Everything that Triton's own Python client is used for, against one server; prints what came of it as one line of JSON.

`python triton_session.py ADDRESS IMAGE TEXT` runs in an environment of its own: it needs tritonclient[grpc] and nothing of twinfer.
"""

import json
import queue
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, shared_memory

Found = dict[str, Any]


def tensor(name: str, datatype: str, values: np.ndarray[Any, Any]) -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def elements(name: str, *values: bytes | str) -> Any:
    return tensor(name, "BYTES", np.array([[value] for value in values], dtype=object))


def outputs(*names: str, **best: int) -> list[Any]:
    return [triton.InferRequestedOutput(name) for name in names] + [
        triton.InferRequestedOutput(name, class_count=count) for name, count in best.items()
    ]


def plain(result: Any, *names: str) -> Found:
    """The outputs as lists that JSON can hold."""
    found = {}
    for name in names:
        values = result.as_numpy(name)
        found[name] = [[value.decode() for value in row] for row in values] if values.dtype == object else values.tolist()
    return found


def failure(act: Callable[[], object]) -> list[str]:
    """What was raised by an act that must fail: status and message."""
    try:
        act()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["", "it did not fail"]


class Session:
    """One client and the rows that it asks about."""

    def __init__(self, address: str, image: Path, text: str) -> None:
        self.client = triton.InferenceServerClient(address)
        self.image = elements("image", image.read_bytes())
        self.text = elements("text", text)

    def state(self) -> Found:
        client = self.client
        metadata = client.get_model_metadata("digits", as_json=True)
        steps = client.get_model_config("digits", as_json=True)["config"]["ensemble_scheduling"]["step"]
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "models": {model["name"]: model["state"] for model in client.get_model_repository_index(as_json=True)["models"]},
            "server": client.get_server_metadata(as_json=True)["name"],
            "inputs": {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]},
            "steps": [step["model_name"] for step in steps],
            "log_error": client.get_log_settings(as_json=True)["settings"]["log_error"],
            "trace_level": client.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"],
        }

    def infer(self) -> Found:
        wanted = outputs("prediction", "degraded", "vision.prediction", "vision.state")
        result = self.client.infer("digits", [self.image, self.text], outputs=wanted, request_id="seven", priority=1, timeout=10**7)
        return plain(result, "prediction", "degraded", "vision.prediction", "vision.state") | {"id": result.get_response().id}

    def infer_without_naming_outputs(self) -> Found:
        return plain(self.client.infer("digits", [self.image, self.text]), "prediction", "degraded", "language.state")

    def infer_pixels_and_token_ids(self) -> Found:
        pixels = tensor("image", "UINT8", np.full((2, 8, 8, 1), 128, np.uint8))
        ids = tensor("text", "INT64", np.array([[3, 4, 5], [5, 4, 3]], np.int64))
        return plain(self.client.infer("digits", [pixels, ids]), "prediction", "vision.state", "language.state")

    def best_classes(self) -> Found:
        return plain(self.client.infer("digits", [self.image, self.text], outputs=outputs(prediction=3)), "prediction")

    def member(self) -> Found:
        return plain(self.client.infer("digits.vision", [self.image], "1"), "prediction", "state")

    def infer_async(self) -> Found:
        done: queue.Queue[Any] = queue.Queue()
        for number in range(8):
            self.client.async_infer(
                "digits", [self.image, self.text], lambda result, error: done.put((result, error)), request_id=str(number)
            )
        results = [done.get(timeout=30) for _ in range(8)]
        assert all(error is None for _, error in results), results
        return {
            "ids": sorted(result.get_response().id for result, _ in results),
            "predictions": [result.as_numpy("prediction").tolist() for result, _ in results],
        }

    def stream(self) -> Found:
        done: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: done.put((result, error)))
        for name, model in (("one", "digits"), ("two", "x"), ("three", "digits.vision")):
            inputs = [self.image] if model == "digits.vision" else [self.image, self.text]
            self.client.async_stream_infer(model, inputs, request_id=name, enable_empty_final_response=True)
        results = [done.get(timeout=30) for _ in range(3)]
        self.client.stop_stream()
        good = [result.get_response() for result, error in results if error is None]
        return {
            "ids": [response.id for response in good],
            "final": [response.parameters["triton_final_response"].bool_param for response in good],
            "errors": [error.message() for _, error in results if error is not None],
        }

    def statistics(self) -> Found:
        before = self._counts()
        self.client.infer("digits", [self.image])
        after = self._counts()
        return {name: [late - early for late, early in zip(after[name], before[name], strict=True)] for name in after}

    def _counts(self) -> dict[str, list[int]]:
        names = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        models = self.client.get_inference_statistics().model_stats
        return {model.name: [getattr(model.inference_stats, name).count for name in names] for model in models}

    def in_shared_memory(self) -> Found:
        pixels = np.full((1, 8, 8, 1), 128, np.uint8)
        region = shared_memory.create_shared_memory_region("region", "/twinfer_triton_session", 256)
        try:
            shared_memory.set_shared_memory_region(region, [pixels])
            self.client.register_system_shared_memory("region", "/twinfer_triton_session", 256)
            listed = list(self.client.get_system_shared_memory_status().regions)
            given = triton.InferInput("image", [1, 8, 8, 1], "UINT8")
            given.set_shared_memory("region", 64)
            wanted = triton.InferRequestedOutput("prediction")
            wanted.set_shared_memory("region", 40, offset=128)
            self.client.infer("digits", [given], outputs=[wanted])
            shared = shared_memory.get_contents_as_numpy(region, np.float32, [1, 10], offset=128).tolist()
            in_band = self.client.infer("digits", [tensor("image", "UINT8", pixels)]).as_numpy("prediction").tolist()
            self.client.unregister_system_shared_memory()
            self.client.unregister_cuda_shared_memory()
            left = list(self.client.get_system_shared_memory_status().regions)
        finally:
            shared_memory.destroy_shared_memory_region(region)
        return {"listed": listed, "left": left, "shared": shared, "in_band": in_band}

    def errors(self) -> Found:
        client, image, text = self.client, self.image, self.text
        return {
            "an unknown model": failure(lambda: client.infer("x", [image])),
            "an unknown version": failure(lambda: client.infer("digits", [image], "2")),
            "metadata of an unknown model": failure(lambda: client.get_model_metadata("x")),
            "an unknown input": failure(lambda: client.infer("digits", [elements("x", "y")])),
            "an unknown output": failure(lambda: client.infer("digits", [image], outputs=outputs("x"))),
            "no image": failure(lambda: client.infer("digits", [elements("image", b"no image")])),
            "a timeout": failure(lambda: client.infer("digits", [image, text], timeout=1)),
            "a client's own timeout": failure(self._ask_for_little_time),
            "loading": failure(lambda: client.load_model("digits")),
            "unloading": failure(lambda: client.unload_model("digits")),
            "the fusion": failure(lambda: client.infer("digits.fusion", [])),
            "other log settings": failure(lambda: client.update_log_settings({"log_info": False})),
            "CUDA memory": failure(lambda: client.register_cuda_shared_memory("region", b"", 0, 1)),
        }

    def _ask_for_little_time(self) -> None:
        """Ask until the client gives up: an answer can be sooner than the clock of its gRPC, which ticks in milliseconds."""
        for _ in range(200):
            self.client.infer("digits", [self.image, self.text], client_timeout=1e-4)

    def fields(self) -> Found:
        """Every field of the protocol as this client knows it: its number, type and whether it is repeated."""
        from tritonclient.grpc import model_config_pb2, service_pb2

        found: dict[str, Any] = {}

        def add(message: Any) -> None:
            for field in message.fields:
                kind = field.message_type or field.enum_type
                found[field.full_name] = [field.number, field.type, kind.full_name if kind else ""]
            for nested in message.nested_types:
                add(nested)

        for file in (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR):
            for message in file.message_types_by_name.values():
                add(message)
            for enum in file.enum_types_by_name.values():
                found |= {f"{enum.full_name}.{value.name}": [value.number] for value in enum.values}
            for service in file.services_by_name.values():
                found |= {
                    method.full_name: [method.input_type.full_name, method.output_type.full_name] for method in service.methods
                }
        return found


def main() -> None:
    """Do everything."""
    address, image, text = sys.argv[1:]
    session = Session(address, Path(image), text)
    parts = [name for name in vars(Session) if not name.startswith("_")]
    print(json.dumps({name: getattr(session, name)() for name in parts}))


if __name__ == "__main__":
    main()
