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
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

Found = dict[str, Any]


def tensor(name: str, datatype: str, values: np.ndarray[Any, Any]) -> Any:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def elements(name: str, *values: bytes | str) -> Any:
    return tensor(name, "BYTES", np.array([[value] for value in values], dtype=object))


def outputs(*names: str) -> list[Any]:
    return [triton.InferRequestedOutput(name) for name in names]


def plain(result: Any, *names: str) -> Found:
    """The outputs as lists that JSON can hold."""
    found = {}
    for name in names:
        values = result.as_numpy(name)
        found[name] = [[value.decode() for value in each] for each in values] if values.dtype == object else values.tolist()
    return found


def failure(act: Callable[[], object]) -> list[str]:
    """What was raised by an act that must fail: status and message."""
    try:
        act()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["", "it did not fail"]


class Session:
    """One client and the image and text that it asks about."""

    def __init__(self, address: str, image: Path, text: str) -> None:
        self.client = triton.InferenceServerClient(address)
        self.image = elements("image", image.read_bytes())
        self.text = elements("text", text)

    def state(self) -> Found:
        client = self.client
        metadata = client.get_model_metadata("digits", as_json=True)
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "models": {model["name"]: model["state"] for model in client.get_model_repository_index(as_json=True)["models"]},
            "server": client.get_server_metadata(as_json=True)["name"],
            "inputs": {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]},
            "max_batch_size": client.get_model_config("digits", as_json=True)["config"]["max_batch_size"],
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

    def infer_what_the_metadata_say(self) -> Found:
        """As load generators do: noise, or zeros, of the datatypes and shapes that are published, two requests in a message."""
        inputs = []
        for published in self.client.get_model_metadata("digits").inputs:
            shape = [2, *(max(size, 1) for size in published.shape[1:])]
            dtype = triton_to_np_dtype(published.datatype)
            values = np.full(shape, b"noise", object) if dtype is np.object_ else np.zeros(shape, dtype)
            inputs.append(tensor(published.name, published.datatype, values))
        return plain(self.client.infer("digits", inputs), "prediction", "vision.state", "language.state")

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

    def errors(self) -> Found:
        client, image, text = self.client, self.image, self.text
        shared = triton.InferInput("image", [1, 8, 8, 1], "UINT8")
        shared.set_shared_memory("region", 64)
        return {
            "an unknown model": failure(lambda: client.infer("x", [image])),
            "an unknown version": failure(lambda: client.infer("digits", [image], "2")),
            "metadata of an unknown model": failure(lambda: client.get_model_metadata("x")),
            "an unknown input": failure(lambda: client.infer("digits", [elements("x", "y")])),
            "an unknown output": failure(lambda: client.infer("digits", [image], outputs=outputs("x"))),
            "no image": failure(lambda: client.infer("digits", [elements("image", b"no image")])),
            "an input in shared memory": failure(lambda: client.infer("digits", [shared])),
            "a timeout": failure(lambda: client.infer("digits", [image, text], timeout=1)),
            "a client's own timeout": failure(self._ask_for_little_time),
            "loading": failure(lambda: client.load_model("digits")),
            "unloading": failure(lambda: client.unload_model("digits")),
            "statistics": failure(client.get_inference_statistics),
            "log settings": failure(client.get_log_settings),
            "trace settings": failure(client.get_trace_settings),
            "system memory": failure(lambda: client.register_system_shared_memory("region", "/region", 1)),
            "CUDA memory": failure(lambda: client.register_cuda_shared_memory("region", b"", 0, 1)),
        }

    def _ask_for_little_time(self) -> None:
        """Ask until the client gives up: an answer can be sooner than the clock of its gRPC, which ticks in milliseconds."""
        for _ in range(200):
            self.client.infer("digits", [self.image, self.text], client_timeout=1e-4)

    def files(self) -> list[str]:
        """The protocol's files as this client knows them, serialized."""
        from tritonclient.grpc import model_config_pb2, service_pb2

        return [file.DESCRIPTOR.serialized_pb.hex() for file in (service_pb2, model_config_pb2)]


def main() -> None:
    """Do everything."""
    address, image, text = sys.argv[1:]
    session = Session(address, Path(image), text)
    parts = [name for name in vars(Session) if not name.startswith("_")]
    print(json.dumps({name: getattr(session, name)() for name in parts}))


if __name__ == "__main__":
    main()
