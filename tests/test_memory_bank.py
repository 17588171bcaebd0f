"""PatchCore with weights of the user's."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model

from ssad_ray.config import validate_config
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.memory_bank import Backbone, MemoryBank


def bank(**options) -> MemoryBank:
    return MemoryBank.from_config(validate_config({"detector": {"memory_bank": options}}))


def frames() -> TrainingFrames:
    return TrainingFrames.of_good(generator(0, "frames").integers(0, 255, (4, 48, 80, 3)).astype(np.uint8))


def test_features_are_those_of_the_second_and_third_stage():
    torch.manual_seed(0)
    backbone = Backbone("resnet18").eval()
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, 48, 80))
    assert features.shape == (2, 128 + 256, 6, 10)


def test_the_named_weights_are_used_and_stored(tmp_path):
    torch.manual_seed(7)
    weights = get_model("resnet18", weights=None).state_dict()
    save_file(weights, tmp_path / "resnet18.safetensors")
    method = bank(weights=str(tmp_path / "resnet18.safetensors"))
    method.fit(frames(), 0)
    state = method.state()
    for name in ("conv1.weight", "layer3.1.conv2.weight", "bn1.running_mean"):
        np.testing.assert_array_equal(state[f"network.{name}"], weights[name])
    (tmp_path / "resnet18.safetensors").unlink()
    again = bank(weights=str(tmp_path / "resnet18.safetensors"))
    again.load_state(state)
    np.testing.assert_array_equal(again.score(frames().images_NHWC)[0], method.score(frames().images_NHWC)[0])


def test_weights_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "resnet18.pth")
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "part.safetensors")
    save_file(get_model("resnet34", weights=None).state_dict(), tmp_path / "resnet34.safetensors")
    for backbone, name, complaint in (
        ("resnet18", "none.safetensors", "cannot be read.*needed are the weights of torchvision's resnet18"),
        ("resnet18", "resnet18.pth", "cannot be read.*as safetensors"),
        ("resnet18", "part.safetensors", "of another network.*'bn1.weight'"),
        ("resnet50", "resnet34.safetensors", "of another network.*torchvision's resnet50"),
    ):
        with pytest.raises(ConfigError, match=f"(?s)detector.memory_bank.weights: .*{name}.*{complaint}"):
            bank(backbone=backbone, weights=str(tmp_path / name)).fit(frames(), 0)
