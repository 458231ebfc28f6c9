"""The Open Inference Protocol beyond classification: every task, several samples for a request, cascades, chains and failures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import oip
from tests.calls import connect
from tests.models import Opinion, chance, register, write_members
from tests.rpc.test_tasks import WORDS, Echo, Share, Total, Words, compare, members
from tests.servers import running, write_ensemble
from twinfer_server.rpc.oip import grpc_service_pb2 as pb


@contextmanager
def serving(folder: Path, toml: str, files: dict[str, str] | None = None) -> Iterator[grpc.Channel]:
    head = 'name = "tasks"\nversion = 1\npolicy = "best_effort"\n'
    with running(write_ensemble(folder, head + toml, files), trust_code=True) as server, connect(server.address) as channel:
        yield channel


def infer(channel: grpc.Channel, model: str, *inputs: oip.Input) -> dict[str, Any]:
    """Ask without naming outputs; all that the metadata list must come, as they say."""
    metadata = oip.ask(channel, "ModelMetadata", pb.ModelMetadataRequest(name=model), pb.ModelMetadataResponse)
    response = oip.infer(channel, oip.request(model, inputs))
    assert isinstance(response, pb.ModelInferResponse), response
    for output, published in zip(response.outputs, metadata.outputs, strict=True):
        assert (output.name, output.datatype) == (published.name, published.datatype)
        assert len(output.shape) == len(published.shape)
        assert all(size in (-1, found) for size, found in zip(published.shape, output.shape, strict=True)), (output, published)
    return oip.read(response)


Values = Sequence[object]


@pytest.mark.parametrize(
    ("task", "models", "one", "other", "method", "fused", "own"),
    [
        ("multi_label", (Share(), Share()), [[0.5, 0.75]], [[0.25, 0.75]], "weighted_mean", [[0.375, 0.75]], [[0.25, 0.75]]),
        ("tensor", (Echo(), Echo(3.0)), [[1, 2]] * 2, [[1, 0]] * 2, "weighted_mean", [[2, 1]] * 2, [[3, 0]] * 2),
        ("tensor", (Total(), Total()), [[1, 2]] * 2, [[4, 5]] * 2, "weighted_mean", [6, 6], [9, 9]),
        ("embedding", (Echo(), Echo()), [[2, 0]], [[0, 3]], "concatenation", [[0.5**0.5, 0, 0, 0.5**0.5]], [[0, 3]]),
    ],
    ids=[
        "labels have a probability each",
        "tensors are averaged",
        "one number is one for a request",
        "embeddings lie side by side",
    ],
)
def test_predictions(
    tmp_path: Path, task: str, models: tuple[nn.Module, ...], one: Values, other: Values, method: str, fused: Values, own: Values
) -> None:  # fmt: skip
    output = {"multi_label": "probabilities"}.get(task, task)
    labels = 'labels = "labels.txt"\n' if task == "multi_label" else ""
    toml = f'task = "{task}"\n{labels}{members(output, 2, one=models[0], other=models[1])}[fusion]\nmethod = "{method}"\n'
    with serving(tmp_path, toml, {"labels.txt": "ant\nbee\n"}) as channel:
        found = infer(channel, "tasks", oip.raw("one", "FP32", one), oip.raw("other", "FP32", other))
        assert found["prediction"] == pytest.approx(np.array(fused), abs=1e-6)
        assert found["other.prediction"] == pytest.approx(np.array(own), abs=1e-6)


class Lengths(nn.Module):
    """Answers one logit, how many tokens there are, and 0; whatever else comes with the ids and the mask."""

    def forward(self, ids: Tensor, mask: Tensor, *types: Tensor) -> Tensor:
        return torch.stack([mask.sum(1).float(), torch.zeros(len(ids))], dim=-1)


def test_one_text_goes_to_members_that_take_ready_ids_in_different_forms(tmp_path: Path) -> None:
    toml = 'task = "classification"\n'
    for name, types in (("plain", "false"), ("typed", "true")):
        toml += f"""
            [members.{name}]
            model = "{register(Lengths())}"
            [members.{name}.input.text]
            kind = "text"
            tokenizer = "words.json"
            max_tokens = 8
            mask = true
            token_types = {types}
        """
    with serving(tmp_path, toml + '[fusion]\nmethod = "weighted_mean"\n', {"words.json": WORDS}) as channel:
        found = infer(channel, "tasks", oip.texts("text", "a", "a b a"))
        assert found["prediction"][:, 0] == pytest.approx([chance(0.5), chance(1.5)], abs=1e-6)
        assert found["plain.state"] == found["typed.state"] == [[b"OK"]] * 2


def test_likenesses_are_to_as_many_texts_as_a_request_brings(tmp_path: Path) -> None:
    with serving(tmp_path, compare(Words()), {"words.json": WORDS}) as channel:
        pictures = oip.raw("picture", "FP32", [[2.0, 0.0], [0.0, 1.0]])
        texts = oip.texts("texts", "b b", "a", "a b", "a", "b", "a a", each=3)
        found = infer(channel, "tasks", pictures, texts)
        assert found["prediction"].shape == (2, 3, 2)
        cosines = [[0.0, 1.0, 0.5**0.5], [0.0, 1.0, 0.0]]
        assert found["prediction"][:, :, 0] == pytest.approx(np.array(cosines), abs=1e-6)
        assert found["prediction"][:, :, 1] == pytest.approx((10.0 * torch.tensor(cosines)).softmax(1).numpy(), abs=1e-5)
        # No answer goes without both of them, so each by itself takes both inputs.
        assert infer(channel, "tasks.words", pictures, texts)["prediction"].shape == (2, 3, 2)


def test_a_member_that_is_only_upstream_of_others_is_no_model(tmp_path: Path) -> None:
    toml = 'task = "classification"\n' + members("features", 2, encoder=Echo(2.0))
    toml += f"""
        [members.head]
        model = "{register(Echo())}"
        [members.head.input.features]
        kind = "output"
        member = "encoder"
        [fusion]
        method = "weighted_mean"
    """
    with serving(tmp_path, toml) as channel:
        values = oip.raw("encoder", "FP32", [[0.5, 0.0]])
        alone = infer(channel, "tasks.head", values)
        assert alone["prediction"][0, 0] == pytest.approx(chance(0.5))  # the logits 1 and 0
        assert infer(channel, "tasks", values)["encoder.state"] == [[b"OK"]]
        found = oip.infer(channel, oip.request("tasks.encoder", [values]))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_ENSEMBLE")
        assert "allowed: 'tasks', 'tasks.head'" in found.details


def test_a_member_that_a_cascade_does_not_need_is_skipped(tmp_path: Path) -> None:
    cascade = '[cascade]\nfirst = "cheap"\ngate = 0.9'
    folder = write_members(tmp_path, {"cheap": Opinion(), "dear": Opinion()}, 'policy = "best_effort"', cascade)
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        requests = [oip.raw(name, "FP32", [[3.0], [0.5]]) for name in ("cheap", "dear")]  # the first is sure, the second is not
        found = infer(channel, "pair", *requests)
        assert found["cheap.state"] == [[b"OK"], [b"OK"]]
        assert found["dear.state"] == [[b"SKIPPED"], [b"OK"]]
        assert np.isnan(found["dear.prediction"][0]).all()
        assert found["dear.prediction"][1, 0] == pytest.approx(chance(0.5))
        assert infer(channel, "pair.dear", requests[1])["prediction"][0, 0] == pytest.approx(chance(3.0))


@pytest.mark.parametrize("fault", ["an error", "NaN"])
def test_a_member_that_fails_degrades_the_ensemble_and_fails_by_itself(tmp_path: Path, fault: str) -> None:
    broken = Opinion()
    folder = write_members(tmp_path, {"good": Opinion(), "bad": broken}, 'policy = "best_effort"')
    with running(folder, trust_code=True, breaker_failures=0) as server, connect(server.address) as channel:
        broken.error = RuntimeError("broken on purpose") if fault == "an error" else None
        requests = [oip.raw("good", "FP32", [[1.0], [1.0]]), oip.raw("bad", "FP32", [[1.0], [-200.0]])]
        found = infer(channel, "pair", *requests)
        bad = [b"FAILED"] if fault == "an error" else [b"OK"]
        assert found["bad.state"] == [bad, [b"FAILED"]]
        assert found["degraded"].tolist() == [[fault == "an error"], [True]]
        failure = oip.infer(channel, oip.request("pair.bad", requests[1:]))
        assert failure.code is grpc.StatusCode.INTERNAL
        assert failure.reason == ("MEMBER_FAILED" if fault == "an error" else "NOT_FINITE")
        assert f"request {0 if fault == 'an error' else 1}: " in failure.details
