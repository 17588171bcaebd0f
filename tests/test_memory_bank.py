"""PatchCore with weights of the user's."""

from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.models import get_model

from ssad_ray.config import validate_config
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError
from ssad_ray.method_config import MemoryBankConfig
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.memory_bank import Backbone, MemoryBank


def bank(**options) -> MemoryBank:
    return MemoryBank.from_config(validate_config({"detector": {"memory_bank": options}}))


def frames() -> TrainingFrames:
    return TrainingFrames.of_good(generator(0, "frames").integers(0, 255, (4, 48, 80, 3)).astype(np.uint8))


def test_features_are_those_of_the_second_and_third_stage():
    torch.manual_seed(0)
    backbone = Backbone("resnet18")
    with torch.inference_mode():
        features = backbone(torch.rand(2, 3, 48, 80))
    assert features.shape == (2, 128 + 256, 6, 10)


def test_features_of_named_weights_are_those_of_torchvision(tmp_path):
    torch.manual_seed(7)
    whole = get_model("resnet18", weights=None).eval()
    for norm in (module for module in whole.modules() if isinstance(module, nn.BatchNorm2d)):
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    save_file(whole.state_dict(), tmp_path / "resnet18.safetensors")
    frames_BCHW = torch.rand(2, 3, 48, 80)
    mean, spread = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    layers = [whole.conv1, whole.bn1, whole.relu, whole.maxpool, whole.layer1, whole.layer2]
    with torch.inference_mode():
        features = Backbone("resnet18", tmp_path / "resnet18.safetensors")(frames_BCHW)
        second = nn.Sequential(*layers)((frames_BCHW - mean) / spread)
        third = functional.avg_pool2d(whole.layer3(second), 3, 1, 1)
        third = functional.interpolate(third, second.shape[2:], mode="bilinear")
    expected = torch.cat([functional.avg_pool2d(second, 3, 1, 1), third], dim=1)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_map_holds_the_distances_to_the_nearest_feature_in_units_of_usual_ones():
    method = bank(memory=100)
    given = frames()
    method.fit(given, 0)
    image = given.images_NHWC[:1].copy()
    image[0, 8:24, 16:40] = 255
    memory, usual = (torch.from_numpy(method.state()[name]) for name in ("memory", "usual"))
    assert memory.shape == (100, 384)
    with torch.inference_mode():
        features = method.network(torch.from_numpy(image).permute(0, 3, 1, 2) / 255)[0].permute(1, 2, 0)
    nearest = torch.cdist(features.double(), memory.double()).amin(-1) / usual
    enlarged = functional.interpolate(nearest[None, None], (48, 80), mode="bilinear")[0, 0].numpy()
    expected = cv2.GaussianBlur(enlarged, (0, 0), (48 * 80) ** 0.5 / 64)
    np.testing.assert_allclose(method.maps(image)[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", get_args(MemoryBankConfig.model_fields["backbone"].annotation))
def test_every_backbone_is_made(name):
    with torch.device("meta"):
        stages = Backbone(name)
    assert stages.layer3[0].conv1.in_channels == (128 if name in ("resnet18", "resnet34") else 512)


def test_named_weights_are_stored(tmp_path):
    torch.manual_seed(7)
    save_file(get_model("resnet18", weights=None).state_dict(), tmp_path / "resnet18.safetensors")
    method = bank(weights=str(tmp_path / "resnet18.safetensors"))
    method.fit(frames(), 0)
    state = method.state()
    (tmp_path / "resnet18.safetensors").unlink()
    again = bank(weights=str(tmp_path / "resnet18.safetensors"))
    again.load_state(state)
    np.testing.assert_array_equal(again.maps(frames().images_NHWC), method.maps(frames().images_NHWC))


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
