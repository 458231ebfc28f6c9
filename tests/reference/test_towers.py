"""Models of two towers, drafted and served: the library's own similarities, for every model type and every way to keep weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.pictures import encode
from tests.pretrained import MAX_TOKENS, SMALL, WORDS, make_image, make_tokenizer, save, save_clip, save_siglip
from tests.servers import running
from tests.weights import save_in_halves, save_in_parts, save_pickled, save_pickled_in_parts
from twinfer import Client
from twinfer_server.draft import draft_towers, write_folder

TEXTS = ["word1 word2 word3", "word4 word5", "word6"]
TEXT = SMALL | {
    "vocab_size": len(WORDS),
    "max_position_embeddings": MAX_TOKENS,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
VISION = SMALL | {"image_size": 32, "patch_size": 8}


def make_altclip() -> Any:
    text = TEXT | {"project_dim": 32, "max_position_embeddings": MAX_TOKENS + 2, "type_vocab_size": 1}
    return transformers.AltCLIPModel(transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=20))


def make_chinese_clip() -> Any:
    return transformers.ChineseCLIPModel(transformers.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=20))


def make_metaclip() -> Any:
    return transformers.MetaClip2Model(transformers.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=20))


def make_aimv2() -> Any:
    return transformers.Aimv2Model(transformers.Aimv2Config(text_config=TEXT, vision_config=VISION, projection_dim=20))


def make_align() -> Any:
    vision = {
        "image_size": 32, "hidden_dim": 32, "in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "depthwise_padding": [], "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "width_coefficient": 1.0,
        "depth_coefficient": 1.0, "depth_divisor": 8,
    }  # fmt: skip
    return transformers.AlignModel(transformers.AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=24))


def make_dual_encoder() -> Any:
    vision, text = transformers.ViTConfig(**VISION), transformers.BertConfig(**TEXT)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=20)
    return transformers.VisionTextDualEncoderModel(config)


MAKERS: dict[str, Callable[[], Any]] = {
    "altclip": make_altclip, "chinese_clip": make_chinese_clip, "metaclip_2": make_metaclip, "aimv2": make_aimv2,
    "align": make_align,    "vision-text-dual-encoder": make_dual_encoder,
}  # fmt: skip


def save_towers(directory: Path, kind: str) -> Any:
    """Write a tiny model of two towers whose scale is not the one that it begins with."""
    torch.manual_seed(6)
    model = {"clip": save_clip, "siglip": save_siglip}[kind](directory) if kind not in MAKERS else MAKERS[kind]()
    with torch.no_grad():
        if hasattr(model, "temperature"):
            model.temperature.fill_(0.25)
        else:
            model.logit_scale.fill_(1.25)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-0.5)
    if kind not in MAKERS:
        return save(directory, model)
    return save(directory, model, SiglipImageProcessorPil(size={"height": 32, "width": 32}), make_tokenizer())


def compare_as_the_library_does(directory: Path, model: Any) -> list[float]:
    processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    is_siglip = hasattr(model, "logit_bias")
    padding: Any = "max_length" if is_siglip else True
    tokens = tokenizer(TEXTS, return_tensors="pt", padding=padding, truncation=True)
    names = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
    with torch.no_grad():
        pixels = processor(make_image(width=36, height=36), return_tensors="pt")
        logits = model(**pixels, **{name: tokens[name] for name in names}).logits_per_image[0]
    found: list[float] = (logits.sigmoid() if is_siglip else logits.softmax(-1)).tolist()
    return found


def draft_from(directory: Path, folder: Path) -> Path:
    towers = draft_towers(f"hf:{directory}")
    assert towers is not None
    write_folder(folder, towers, "")
    return folder


def compare_as_served(directory: Path, folder: Path) -> list[float]:
    picture = encode(make_image(width=36, height=36))
    with running(draft_from(directory, folder), trust_code=True) as server, Client(server.address, attempts=1) as client:
        return [match.probability for match in client.infer({"image": picture, "text": TEXTS}).prediction.matches]


@pytest.mark.parametrize("kind", ["clip", "siglip", *MAKERS])
def test_a_drafted_pair_of_towers_gives_the_similarities_of_the_library(tmp_path: Path, kind: str) -> None:
    model = save_towers(tmp_path / kind, kind)
    assert compare_as_served(tmp_path / kind, tmp_path / "towers") == pytest.approx(
        compare_as_the_library_does(tmp_path / kind, model), abs=1e-4
    )


@pytest.mark.parametrize("write", [save_in_parts, save_pickled, save_pickled_in_parts, save_in_halves])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_weights_may_be_in_any_files(tmp_path: Path, kind: str, write: Callable[[Path, Any], None]) -> None:
    model = save_towers(tmp_path / kind, kind)
    write(tmp_path / kind, model)
    assert compare_as_served(tmp_path / kind, tmp_path / "towers") == pytest.approx(
        compare_as_the_library_does(tmp_path / kind, model), abs=1e-4
    )
