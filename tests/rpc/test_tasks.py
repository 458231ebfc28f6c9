"""Every task from request to answer, through a real server, by members whose answers one can check by eye."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.models import register
from tests.servers import running, write_ensemble
from twinfer import Client, Prediction, Response, TwinferError
from twinfer.errors import InvalidOption, MissingInput, NotFinite
from twinfer_server.errors import InvalidEnsemble

NO_FILES: Mapping[str, str] = {}
MEAN = '[fusion]\nmethod = "weighted_mean"\n'


@contextmanager
def serving(folder: Path, toml: str, files: Mapping[str, str] = NO_FILES) -> Iterator[Client]:
    head = 'name = "tasks"\nversion = 1\npolicy = "best_effort"\n'
    with (
        running(write_ensemble(folder, head + toml, files), trust_code=True) as server,
        Client(server.address, attempts=1) as client,
    ):
        yield client


def members(output: str, size: int = 2, **models: nn.Module) -> str:
    """Write members that take a vector each, in an input of the member's own name."""
    return "".join(
        f"""
        [members.{name}]
        model = "{register(model)}"
        input.{name} = {{ kind = "tensor", dtype = "float32", shape = [{size}] }}
        output.kind = "{output}"
        """
        for name, model in models.items()
    )


def head(name: str, model: nn.Module, upstream: str, output: str) -> str:
    """Write a member that takes the output of another one."""
    return f"""
        [members.{name}]
        model = "{register(model)}"
        input.features = {{ kind = "output", member = "{upstream}" }}
        output.kind = "{output}"
    """


class Echo(nn.Module):
    """Answers what it is given, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Share(nn.Module):
    """Answers what it is given, where that is a probability, and the nearest one elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)


class Rounded(nn.Module):
    """Answers what it is given, a little further from 0.5; what made-up samples hold becomes a probability first."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x < 4.0, x.clamp(0.0, 1.0), x)
        return 0.5 + (x - 0.5) * 1.000001


class Total(nn.Module):
    """Answers one number for a sample, as a regression does: the sum of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def values_of(prediction: Prediction) -> NDArray[np.float32]:
    assert prediction.tensor is not None
    return np.frombuffer(prediction.tensor.data, "<f4").reshape(prediction.tensor.shape)


# --- multi_label and tensor -----------------------------------------------------------------------------------------------


def test_labels_have_a_probability_each(tmp_path: Path) -> None:
    toml = 'task = "multi_label"\nlabels = "labels.txt"\n' + members("probabilities", 3, one=Share(), other=Share()) + MEAN
    with serving(tmp_path, toml, {"labels.txt": "ant\nbee\ncat\n"}) as client:
        answer = client.infer({"one": vector(0.5, 0.75, 0.0), "other": vector(0.25, 0.75, 0.5)}, top_k=2, explain=True)
        labels: Any = [(label.label, label.probability) for label in answer.prediction.labels]
        assert labels == [("bee", pytest.approx(0.75, abs=1e-6)), ("ant", pytest.approx(0.375, abs=1e-6))]
        assert answer.disagreement is not None
        attribution = answer.members["one"].attribution
        assert attribution is not None
        assert attribution.delta == pytest.approx((0.125 + 0.0 + 0.25) / 3, abs=1e-6)
        with pytest.raises(InvalidOption, match=r"top_k: found 4; allowed: 0 to 3"):
            client.infer({"one": vector(0.5, 0.5, 0.5)}, top_k=4)


def test_tensors_are_averaged_and_come_back_in_their_shape(tmp_path: Path) -> None:
    toml = f'task = "tensor"\n{members("tensor", 2, one=Echo(), other=Echo(3.0))}{MEAN}weights = {{ one = 0.75, other = 0.25 }}\n'
    with serving(tmp_path, toml) as client:
        values = values_of(client.infer({"one": vector(1.0, 2.0), "other": vector(1.0, 0.0)}).prediction)
        assert values == pytest.approx(vector(1.5, 1.5))


def test_a_tensor_of_one_number_needs_no_dimension(tmp_path: Path) -> None:
    toml = 'task = "tensor"\n' + members("tensor", 2, one=Total(), other=Total()) + MEAN
    with serving(tmp_path, toml) as client:
        requests = [{"one": vector(1.0, 2.0), "other": vector(4.0, 5.0)}, {"one": vector(8.0, 8.0)}]
        answers = [outcome.response for outcome in client.infer_batch(requests, explain=True)]
        values = [values_of(answer.prediction) for answer in answers]
        assert [(value.shape, float(value)) for value in values] == [((), 6.0), ((), 16.0)]


def test_a_probability_that_is_none_is_called_that(tmp_path: Path) -> None:
    toml = 'task = "multi_label"\n' + members("probabilities", 2, one=Share(), other=Rounded()) + MEAN
    with serving(tmp_path, toml) as client:
        assert not client.infer({"one": vector(1.0, 0.0), "other": vector(1.0, 0.0)}).degraded
        answer = client.infer({"one": vector(1.0, 0.0), "other": vector(5.0, 0.0)})
        error = answer.members["other"].error
        assert isinstance(error, NotFinite)
        assert error.text == "the member answered with NaN or an infinity, or with a probability that is none"


# --- members that are not fused -------------------------------------------------------------------------------------------


def test_an_encoder_that_only_heads_take_the_output_of_is_not_fused(tmp_path: Path) -> None:
    toml = 'task = "classification"\n' + members("features", 2, encoder=Echo(2.0))
    toml += head("one", Echo(1.0), "encoder", "logits") + head("other", Echo(3.0), "encoder", "logits")
    with serving(tmp_path, toml + '[fusion]\nmethod = "log_opinion_pool"\n') as client:
        answer = client.infer({"encoder": vector(0.5, 0.0)}, member_predictions=True)
        assert {name: (str(member.state), member.weight) for name, member in answer.members.items()} == {
            "encoder": ("OK", 0.0), "one": ("OK", 0.5), "other": ("OK", 0.5),
        }  # fmt: skip
        expected = torch.tensor([2.0, 0.0]).softmax(0)[0].item()  # the mean of the logits 1 and 3
        assert answer.probability == pytest.approx(expected, abs=1e-6)
        assert answer.members["encoder"].prediction is None
        assert [member.upstream for member in client.describe().members] == [[], ["encoder"], ["encoder"]]


# --- similarity -----------------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Embeds a text by its token ids: how many are 0 and how many are 1."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([((ids == number) & (mask > 0)).sum(1).float() for number in (0, 1)], dim=-1)


WORDS = """{"version": "1.0", "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"""
OWN = {"labels.txt": "first\nsecond\nboth\n", "texts.txt": "a a a\nb\na b\n"}


def compare(words: nn.Module, own: bool = False, between: str = "") -> str:
    """Write an ensemble that compares a picture with texts; with texts of its `own`, or `between` the encoder and the fusion."""
    return f"""
        task = "similarity"
        {'labels = "labels.txt"' if own else ""}
        {members("embedding", 2, picture=Echo())}
        [members.words]
        model = "{register(words)}"
        input.texts = {{ kind = "text", tokenizer = "words.json", max_tokens = 8, mask = true, max_samples = 4 }}
        output.kind = "{"features" if between else "embedding"}"
        {between}
        [fusion]
        method = "cosine"
        scale = 10.0
        {'texts = "texts.txt"' if own else ""}
        [batching]
        max_batch_size = 4
    """


@contextmanager
def comparing(
    folder: Path, own: Mapping[str, str] = NO_FILES, words: nn.Module | None = None, between: str = ""
) -> Iterator[Client]:
    toml = compare(words or Words(), bool(own), between)
    with serving(folder, toml, {"words.json": WORDS, **own}) as client:
        yield client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with comparing(tmp_path) as client:
        yield client


def check_order_of_request(client: Client) -> None:
    matches = client.infer({"picture": vector(2.0, 0.0), "texts": ["b b", "a", "a b"]}).prediction.matches
    assert [match.index for match in matches] == [0, 1, 2]
    assert [match.cosine for match in matches] == pytest.approx([0.0, 1.0, 0.5**0.5], abs=1e-6)
    expected = torch.tensor([match.cosine for match in matches]).mul(10.0).softmax(0).tolist()
    assert [match.probability for match in matches] == pytest.approx(expected, abs=1e-5)


def test_a_picture_is_compared_with_the_texts_of_the_request_in_its_order(client: Client) -> None:
    check_order_of_request(client)


def test_texts_may_be_compared_by_a_member_that_takes_another_ones_output(tmp_path: Path) -> None:
    with comparing(tmp_path, between=head("head", Echo(2.0), "words", "embedding")) as client:
        check_order_of_request(client)


def test_requests_with_different_numbers_of_texts_share_batches_and_keep_their_own(client: Client) -> None:
    requests: list[Any] = [{"picture": vector(1.0, 0.0), "texts": ["a", "b", "a b", "b"][: 1 + n % 4]} for n in range(40)]
    for outcome in client.infer_many(requests):
        cosines = [match.cosine for match in outcome.response.prediction.matches]
        assert cosines == pytest.approx([1.0, 0.0, 0.5**0.5, 0.0][: 1 + outcome.index % 4], abs=1e-6)


def test_a_likeness_needs_both_of_its_members_and_no_more_texts_than_allowed(client: Client) -> None:
    for inputs, missing in (({"picture": vector(1.0, 0.0)}, "texts"), ({"texts": ["a"]}, "picture")):
        with pytest.raises(MissingInput, match=missing):
            client.infer(inputs)
    with pytest.raises(TwinferError, match=r"5.*4"):
        client.infer({"picture": vector(1.0, 0.0), "texts": ["a"] * 5})


def test_a_request_without_texts_is_compared_with_the_ensembles_own_best_first(tmp_path: Path) -> None:
    with comparing(tmp_path, OWN) as client:
        matches = client.infer({"picture": vector(0.0, 3.0)}, top_k=2).prediction.matches
        assert [(match.label, match.index) for match in matches] == [("second", 1), ("both", 2)]
        assert [match.cosine for match in matches] == pytest.approx([1.0, 0.5**0.5], abs=1e-6)
        (own,) = client.infer({"picture": vector(0.0, 3.0), "texts": ["a"]}).prediction.matches
        assert own.label == ""
        assert own.cosine == pytest.approx(0.0, abs=1e-6)


def test_texts_whose_member_fails_are_not_answered_with_the_ensembles_own(tmp_path: Path) -> None:
    words = Words()
    with comparing(tmp_path, OWN, words) as client:
        words.forward = lambda *arguments: torch.full((len(arguments[0]), 2), torch.nan)  # type: ignore[method-assign]
        with pytest.raises(NotFinite) as failure:
            client.infer({"picture": vector(0.0, 3.0), "texts": ["b", "a"]})
        assert failure.value.member == "words"
        assert client.infer({"picture": vector(0.0, 3.0)}).prediction.matches[0].label == "second"


@pytest.mark.parametrize(
    ("labels", "message"),
    [("first\nsecond\n", "2 labels; allowed: one for each of the 3 texts"), ("a\nb\nc\nd\n", "4 labels")],
    ids=["too few", "too many"],
)
def test_labels_must_be_as_many_as_texts(tmp_path: Path, labels: str, message: str) -> None:
    with pytest.raises(InvalidEnsemble, match=message), comparing(tmp_path, OWN | {"labels.txt": labels}):
        raise AssertionError("it started")


# --- detection ------------------------------------------------------------------------------------------------------------


class Finder(nn.Module):
    """Finds two objects in every picture: the upper left quarter, certain of it, and the lower right one, less so."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5 + self.shift], [0.5, 0.5, 1.0, 1.0]], device=pixels.device)
        scores = torch.tensor([[0.75, 0.125], [0.125, 0.5]], device=pixels.device)
        return boxes.expand(len(pixels), -1, -1), scores.expand(len(pixels), -1, -1)


def detector(name: str, shift: float) -> str:
    return f"""
        [members.{name}]
        model = "{register(Finder(shift))}"
        input.image = {{ kind = "image", size = [8, 8], color = "gray" }}
        output.kind = "detections"
    """


def boxes_of(answer: Response) -> Any:
    return [(box.label, [box.x_min, box.y_min, box.x_max, box.y_max], box.score) for box in answer.prediction.boxes]


def test_boxes_that_two_detectors_see_alike_become_one(tmp_path: Path) -> None:
    toml = 'task = "detection"\nlabels = "labels.txt"\n' + detector("one", 0.0) + detector("other", 0.1)
    toml += '[fusion]\nmethod = "weighted_boxes"\niou = 0.5\n'
    with serving(tmp_path, toml, {"labels.txt": "dark\nbright\n"}) as client:
        answer = client.infer({"image": np.zeros((8, 8, 1), dtype=np.uint8)}, explain=True)
        assert boxes_of(answer) == [
            ("dark", pytest.approx([0.0, 0.0, 0.5, 0.55], abs=1e-6), pytest.approx(0.75, abs=1e-6)),
            ("bright", pytest.approx([0.5, 0.5, 1.0, 1.0], abs=1e-6), pytest.approx(0.5, abs=1e-6)),
        ]
        attribution = answer.members["one"].attribution
        assert attribution is not None
        assert attribution.delta == pytest.approx(0.0, abs=1e-6)  # without it the same two objects are found
        own = answer.members["other"].prediction
        assert own is not None
        assert own.boxes[0].y_max == pytest.approx(0.6, abs=1e-6)
