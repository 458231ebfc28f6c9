"""The Open Inference Protocol beyond classification: every task, several samples for a row, cascades, chains and failures."""

from collections.abc import Iterator
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
from tests.servers import running, write_ensemble
from tests.test_cascade import CASCADE
from tests.test_tasks import SIMILARITY, WORDS, Echo, Shades, Share, Total, Words, members, name_crops, picture, softmax
from twinfer_server.rpc.oip import grpc_service_pb2 as pb


@contextmanager
def serving(folder: Path, toml: str, files: dict[str, str] | None = None) -> Iterator[grpc.Channel]:
    head = 'name = "tasks"\nversion = 1\npolicy = "best_effort"\n'
    with running(write_ensemble(folder, head + toml, files), trust_code=True) as server, connect(server.address) as channel:
        yield channel


def infer(channel: grpc.Channel, model: str, *inputs: Any, outputs: list[Any] | None = None) -> dict[str, Any]:
    """Ask for `outputs`, or all; everything that comes must be as the metadata say."""
    request = pb.ModelMetadataRequest(name=model)
    published = {
        output.name: (output.datatype, list(output.shape))
        for output in oip.ask(channel, "ModelMetadata", request, pb.ModelMetadataResponse).outputs
    }
    response = oip.infer(channel, oip.request(model, inputs, [*published] if outputs is None else outputs))
    assert isinstance(response, pb.ModelInferResponse), response
    for output in response.outputs:
        datatype, shape = published[output.name]
        if outputs is None:
            assert output.datatype == datatype
            assert len(output.shape) == len(shape)
            assert all(size in (-1, found) for size, found in zip(shape, output.shape, strict=True)), (output, shape)
    return oip.read(response)


def test_labels_have_a_probability_each(tmp_path: Path) -> None:
    toml = 'task = "multi_label"\nlabels = "labels.txt"\n' + members("probabilities", 3, one=Share(), other=Share())
    toml += '[fusion]\nmethod = "weighted_mean"\n'
    with serving(tmp_path, toml, {"labels.txt": "ant\nbee\ncat\n"}) as channel:
        rows = [oip.raw("one", "FP32", [[0.5, 0.75, 0.0]]), oip.raw("other", "FP32", [[0.25, 0.75, 0.5]])]
        assert infer(channel, "tasks", *rows)["prediction"][0] == pytest.approx([0.375, 0.75, 0.25], abs=1e-6)
        best = infer(channel, "tasks", *rows, outputs=[oip.wanted("prediction", classification=2)])
        assert best["prediction"] == [[b"0.750000:1:bee", b"0.375000:0:ant"]]


def test_tensors_are_averaged(tmp_path: Path) -> None:
    toml = 'task = "tensor"\n' + members("tensor", 2, one=Echo(), other=Echo(3.0)) + '[fusion]\nmethod = "weighted_mean"\n'
    with serving(tmp_path, toml) as channel:
        found = infer(channel, "tasks", oip.raw("one", "FP32", [[1.0, 2.0]] * 2), oip.raw("other", "FP32", [[1.0, 0.0]] * 2))
        assert found["prediction"].tolist() == [[2.0, 1.0]] * 2
        assert found["other.prediction"].tolist() == [[3.0, 0.0]] * 2


def test_a_tensor_of_one_number_is_one_for_a_row(tmp_path: Path) -> None:
    toml = 'task = "tensor"\n' + members("tensor", 2, one=Total(), other=Total()) + '[fusion]\nmethod = "weighted_mean"\n'
    with serving(tmp_path, toml) as channel:
        found = infer(channel, "tasks", oip.raw("one", "FP32", [[1.0, 2.0]] * 2), oip.raw("other", "FP32", [[4.0, 5.0]] * 2))
        assert found["prediction"].tolist() == [6.0, 6.0]
        assert found["other.prediction"].tolist() == [9.0, 9.0]


def test_embeddings_lie_side_by_side(tmp_path: Path) -> None:
    toml = 'task = "embedding"\n' + members("embedding", 2, one=Echo(), other=Echo()) + '[fusion]\nmethod = "concatenation"\n'
    with serving(tmp_path, toml) as channel:
        found = infer(channel, "tasks", oip.raw("one", "FP32", [[2.0, 0.0]]), oip.raw("other", "FP32", [[0.0, 3.0]]))
        assert found["prediction"][0] == pytest.approx([0.5**0.5, 0, 0, 0.5**0.5], abs=1e-6)


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


def test_likenesses_are_to_as_many_texts_as_a_row_brings(tmp_path: Path) -> None:
    toml = SIMILARITY.format(picture=register(Echo()), words=register(Words()), labels="", texts="")
    with serving(tmp_path, toml, {"words.json": WORDS}) as channel:
        pictures = oip.raw("picture", "FP32", [[2.0, 0.0], [0.0, 1.0]])
        texts = oip.texts("texts", "b b", "a", "a b", "a", "b", "a a", each=3)
        found = infer(channel, "tasks", pictures, texts)
        assert found["prediction"].shape == (2, 3, 2)
        cosines = [[0.0, 1.0, 0.5**0.5], [0.0, 1.0, 0.0]]
        assert found["prediction"][:, :, 0] == pytest.approx(np.array(cosines), abs=1e-6)
        assert found["prediction"][:, :, 1] == pytest.approx(np.array([softmax(*row) for row in cosines]), abs=1e-5)
        # No answer goes without both of them, so each by itself takes both inputs.
        assert infer(channel, "tasks.words", pictures, texts)["prediction"].shape == (2, 3, 2)


def test_boxes_and_what_is_in_them(tmp_path: Path) -> None:
    toml = name_crops(Shades(), max_crops=2)
    with serving(tmp_path, toml, {"labels.txt": "black\ndark\ndim\nlight\nbright\nwhite\n"}) as channel:
        pixels = oip.raw("image", "UINT8", picture()[np.newaxis])
        found = infer(channel, "tasks", pixels)
        boxes = found["prediction"][0]
        assert sorted(box[5] for box in boxes[boxes[:, 4] > 0]) == [0, 5]
        assert found["finder.prediction"][0, :2, 4] == pytest.approx([0.75, 0.5])
        # The namer is fed by the finder, so by itself it takes what the finder takes.
        assert infer(channel, "tasks.namer", pixels)["prediction"].shape == (1, 2, 6)


def test_a_member_that_only_feeds_others_cannot_be_asked(tmp_path: Path) -> None:
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
        assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
        assert "only feeds" in found.details


def test_a_member_that_a_cascade_does_not_need_is_skipped_and_counts_all_the_same(tmp_path: Path) -> None:
    folder = write_members(tmp_path, {"cheap": Opinion(), "dear": Opinion()}, 'policy = "best_effort"', CASCADE)
    with running(folder, trust_code=True) as server, connect(server.address) as channel:
        rows = [oip.raw(name, "FP32", [[3.0], [0.5]]) for name in ("cheap", "dear")]  # the first is sure, the second is not
        found = infer(channel, "pair", *rows)
        assert found["cheap.state"] == [[b"OK"], [b"OK"]]
        assert found["dear.state"] == [[b"SKIPPED"], [b"OK"]]
        assert np.isnan(found["dear.prediction"][0]).all()
        assert found["dear.prediction"][1, 0] == pytest.approx(chance(0.5))
        assert infer(channel, "pair.dear", rows[1])["prediction"][0, 0] == pytest.approx(chance(3.0))
        sure = [oip.raw(name, "FP32", [[3.0]]) for name in ("cheap", "dear")]
        assert infer(channel, "pair", *sure)["dear.state"] == [[b"SKIPPED"]]
        statistics = oip.ask(channel, "ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse)
        counts = {model.name: model.inference_stats.compute_infer.count for model in statistics.model_stats}
        assert counts == {"pair": 2, "pair.cheap": 2, "pair.dear": 3, "pair.fusion": 2}


@pytest.mark.parametrize("fault", ["an error", "NaN"])
def test_a_member_that_fails_degrades_the_ensemble_and_fails_by_itself(tmp_path: Path, fault: str) -> None:
    broken = Opinion()
    folder = write_members(tmp_path, {"good": Opinion(), "bad": broken}, 'policy = "best_effort"')
    with running(folder, trust_code=True, breaker_failures=0) as server, connect(server.address) as channel:
        broken.error = RuntimeError("broken on purpose") if fault == "an error" else None
        rows = [oip.raw("good", "FP32", [[1.0], [1.0]]), oip.raw("bad", "FP32", [[1.0], [-200.0]])]
        found = infer(channel, "pair", *rows)
        bad = [b"FAILED"] if fault == "an error" else [b"OK"]
        assert found["bad.state"] == [bad, [b"FAILED"]]
        assert found["degraded"].tolist() == [[fault == "an error"], [True]]
        failure = oip.infer(channel, oip.request("pair.bad", rows[1:]))
        assert failure.code is grpc.StatusCode.INTERNAL
        assert failure.reason == ("MEMBER_FAILED" if fault == "an error" else "NOT_FINITE")
        assert f"row {0 if fault == 'an error' else 1}: " in failure.details
