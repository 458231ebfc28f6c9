"""Models of two towers: `twinfer init` reads the scale of their cosines from whatever files have the weights, or asks.

tests/reference compares what is served with the library.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretrained import save, save_siglip, save_vit
from tests.weights import save_in_halves, save_in_parts, save_pickled, save_pickled_in_parts
from twinfer_server.draft import CannotDraft, draft_towers, write_folder
from twinfer_server.spec import read_spec


def save_towers(directory: Path) -> Any:
    """Write a tiny model of two towers whose scale and bias are not those that it begins with."""
    model = save_siglip(directory)
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
        model.logit_bias.fill_(-0.5)
    return save(directory, model)


def draft_from(directory: Path, folder: Path) -> Path:
    towers = draft_towers(f"hf:{directory}")
    assert towers is not None
    write_folder(folder, towers, "")
    return folder


def save_whole(directory: Path, model: Any) -> None:
    pass


@pytest.mark.parametrize("write", [save_whole, save_in_parts, save_pickled, save_pickled_in_parts, save_in_halves])
def test_the_scale_is_read_from_whatever_files_have_the_weights(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    write(tmp_path / "siglip", save_towers(tmp_path / "siglip"))
    fusion = read_spec(draft_from(tmp_path / "siglip", tmp_path / "towers")).fusion
    assert fusion.scale == pytest.approx(3.490343)
    assert (fusion.bias, fusion.activation) == (-0.5, "sigmoid")
    copied = {path.name for path in (tmp_path / "towers" / "siglip").iterdir()}
    assert copied == {path.name for path in (tmp_path / "siglip").iterdir()}, "the weights have to be there"


def test_a_scale_that_the_weights_do_not_have_is_asked_for(tmp_path: Path) -> None:
    model = save_towers(tmp_path / "siglip")
    state = {name: value for name, value in model.state_dict().items() if name != "logit_scale"}
    model.save_pretrained(tmp_path / "siglip", state_dict=state)
    folder = draft_from(tmp_path / "siglip", tmp_path / "towers")
    assert 'scale = "?"                  # write it here: the weights have no logit_scale' in (folder / "ensemble.toml").read_text()


@pytest.mark.parametrize("kind", ["blip-2", "owlvit", None])
def test_towers_that_the_library_compares_in_a_way_of_its_own_are_refused(tmp_path: Path, kind: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "text_config": {}, "vision_config": {}}))
    with pytest.raises(CannotDraft, match=rf"config\.json: model_type: found '{kind}'; allowed of two towers: aimv2, align"):
        draft_towers(f"hf:{tmp_path}")


def test_a_part_that_an_index_names_and_the_directory_lacks_is_named(tmp_path: Path) -> None:
    model = save_towers(tmp_path / "siglip")
    save_in_parts(tmp_path / "siglip", model)
    part = sorted((tmp_path / "siglip").glob("model-*.safetensors"))[-1]
    part.unlink()
    with pytest.raises(CannotDraft, match=rf"model\.safetensors\.index\.json: no such file: '{part.name}'"):
        draft_towers(f"hf:{tmp_path / 'siglip'}")


def test_a_classifier_on_one_tower_is_no_pair_of_towers(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    path = tmp_path / "vit" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"text_config": {}, "vision_config": {}}))
    assert draft_towers(f"hf:{tmp_path / 'vit'}") is None
