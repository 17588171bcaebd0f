"""GAN inversion: one loss for both players, latents and generators fitted to frames, what is usual."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from ssad_ray.config import RunConfig, validate_config
from ssad_ray.core.rng import generator
from ssad_ray.methods import inversion
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.gan_inversion import GanInversion
from ssad_ray.methods.gan_networks import Discriminator, Generator, SpectralConv
from ssad_ray.methods.inversion import REACH_PX, refine, relax_all, relax_trusted, trust
from ssad_ray.methods.training import Trainer
from ssad_ray.methods.usual import Usual, steepness

HEIGHT, WIDTH = 48, 80


def gan(**options) -> GanInversion:
    small = {"width": 8, "latent": 4, "crop_px": 32, "refine_steps": 4, "relax_steps": 4, **options}
    training = {"steps": 4, "batch_size": 4}
    return GanInversion.from_config(validate_config({"detector": {"gan_inversion": {**small, "training": training}}}))


def frames(num: int = 6) -> TrainingFrames:
    rng = generator(0, "frames")
    level = rng.integers(60, 160, (num, HEIGHT // 8, WIDTH // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return TrainingFrames.of_good((level + rng.integers(0, 9, level.shape)).astype(np.uint8))


@pytest.fixture(scope="module")
def fitted() -> GanInversion:
    method = gan()
    method.fit(frames(), 0)
    return method


def example(seed: int = 0) -> tuple[Generator, torch.Tensor, torch.Tensor]:
    """A generator, a latent, and what it generates from it."""
    torch.manual_seed(seed)
    made = Generator(8, 4)
    z = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8)
    return made, z, made(z).detach()


def test_one_loss_has_the_gradients_of_both_players():
    method = gan()
    method.initialise(frames(), 0)
    batch = {name: torch.from_numpy(each) for name, each in method.batch(frames(), 0, 0, 0).items()}
    together = torch.autograd.grad(method.loss(batch), list(method.network.parameters()))

    network = method.network
    real = batch["image"].permute(0, 3, 1, 2) / 127.5 - 1
    z = network.encoder(real)
    fake = network.generator(z + batch["noise"])
    wanted, logits_real = network.discriminator(real)
    found, logits_fake = network.discriminator(fake)
    players = [*network.encoder.parameters(), *network.generator.parameters()]
    alike = sum((a - b.detach()).abs().mean() for a, b in zip(found, wanted, strict=True))
    shown = 10 * (fake - real).abs().mean() + alike - 0.02 * logits_fake.mean() + 0.01 * z.square().mean()
    judged = functional.relu(1 - logits_real).mean() + functional.relu(1 + logits_fake).mean()
    apart = torch.autograd.grad(shown, players, retain_graph=True)
    apart += torch.autograd.grad(judged, list(network.discriminator.parameters()))
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_optimizer_has_the_decays_of_the_config():
    assert Trainer(gan(), frames(), 0).optimizer.param_groups[0]["betas"] == (0.5, 0.99)
    assert RunConfig().detector.draem.training.beta2 == 0.999


def test_no_network_has_a_buffer():
    assert list(gan().network.buffers()) == []


def test_a_spectral_convolution_has_norm_one():
    torch.manual_seed(0)
    layer = SpectralConv(2, 3, 4, 2, 1, bias=False).double()
    x = torch.randn(1, 2, 8, 12, dtype=torch.float64)
    norm = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
    torch.testing.assert_close(layer(x), functional.conv2d(x, layer.weight / norm, None, 2, 1))
    torch.autograd.gradcheck(lambda weight: torch.func.functional_call(layer, {"weight": weight}, (x,)), layer.weight)


def test_a_place_does_not_depend_on_what_is_far():
    method = gan()
    method.initialise(frames(), 0)
    x = torch.rand(1, 3, 96, 160)
    changed = x.clone()
    changed[:, :, :, :32] = -1.0
    one, other = (method.network.generator(method.network.encoder(each)) for each in (x, changed))
    torch.testing.assert_close(one[..., 104:], other[..., 104:])
    assert not torch.allclose(one[..., :32], other[..., :32])


def test_crops_and_noise_have_the_sizes_that_were_asked_for():
    method = gan(crop_px=64, noise=0.5)
    method.initialise(frames(), 0)
    batch = method.batch(frames(), 0, 3, 1)
    assert batch["image"].shape == (2, HEIGHT, HEIGHT, 3)
    assert batch["noise"].shape == (2, 4, HEIGHT // 8, HEIGHT // 8)
    assert 0.4 < batch["noise"].std() < 0.6


def test_a_latent_is_recovered_beside_a_defect():
    made, z, x = example()
    with_defect = x.clone()
    with_defect[..., 16:24, 40:48] = 1.0
    start = z + 0.3 * torch.randn_like(z)
    usual = torch.full((1, 1, 1, 1), float((made(start) - x).abs().mean().detach()))
    found = refine(made, with_defect, start, usual, 40)
    clean = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    clean[0:40, 24:64] = False
    before, after = (float((made(each) - x).abs().mean((0, 1))[clean].mean().detach()) for each in (start, found))
    assert after < 0.2 * before
    torch.testing.assert_close(refine(made, with_defect, start, usual, 0), start)


def test_near_a_conspicuous_pixel_nothing_is_trusted():
    residual = torch.zeros(1, 20, 30)
    residual[0, 10, 3] = 2.0
    untrusted = (trust(residual, 2.0) == 0).sum(), (trust(residual, 1.9) == 0).nonzero()
    assert untrusted[0] == 0
    rows, columns = untrusted[1][:, 1], untrusted[1][:, 2]
    assert (rows.min(), rows.max()) == (10 - REACH_PX, 10 + REACH_PX)
    assert (columns.min(), columns.max()) == (0, 3 + REACH_PX)


def test_what_is_not_trusted_has_no_influence():
    made, z, x = example()
    trusted = torch.ones(1, HEIGHT, WIDTH)
    trusted[:, 10:20, 30:50] = 0
    start = z + 1.0
    changed = x.clone()
    changed[..., 10:20, 30:50] = 1.0
    before = copy.deepcopy(made.state_dict())
    one, other = (relax_trusted(made, each, start, trusted, 40) for each in (x, changed))
    assert torch.equal(one, other)
    assert (one - x).abs().mean() < 0.8 * (made(start) - x).abs().mean()
    assert all(torch.equal(before[name], weight) for name, weight in made.state_dict().items())


def test_progressive_reconstruction_shows_the_defect_and_leaves_the_generator_alone():
    made, z, x = example()
    judge = Discriminator(8)
    changed = x.clone()
    changed[..., 10:20, 30:50] = 1.0
    before = copy.deepcopy(made.state_dict())
    shown = relax_all(made, judge, changed, z, 40)
    inside = (..., slice(10, 20), slice(30, 50))
    assert (shown - changed)[inside].abs().mean() < 0.95 * (x - changed)[inside].abs().mean()
    assert all(torch.equal(before[name], weight) for name, weight in made.state_dict().items())


def test_progressive_reconstruction_moves_one_group_more_in_each_stage_and_the_output_layer_never(monkeypatch):
    made, z, x = example()
    moved = []
    monkeypatch.setattr(inversion, "_descend", lambda groups, *_: moved.append(groups))
    relax_all(made, Discriminator(8), x, z, 40)
    assert [len(groups) - 1 for groups in moved] == [1, 2, 3, 4]
    sizes = [sum(weight.numel() for weight in group.parameters()) for group in made.groups]
    for groups in moved:
        found = [sum(weight.numel() for weight in group["params"]) for group in groups[1:]]
        assert found == sizes[: len(found)]
        rates = [group["lr"] for group in groups[1:]]
        assert rates == sorted(rates, reverse=True)
    assert sum(sizes[:4]) < sum(weight.numel() for weight in made.parameters())


@pytest.mark.parametrize("relax", ["none", "masked", "dgp"])
def test_neither_order_nor_company_changes_a_map(fitted, relax):
    method = gan(relax=relax)
    method.load_state(fitted.state())
    method.suspicious_above = 0.0
    method.trusted_below = 3.0
    images = frames(8).images_NHWC[6:]
    images[0, 8:20, 30:50] = 250
    maps, again = method.maps(images), method.maps(images[::-1].copy())
    np.testing.assert_allclose(maps.max((1, 2)), again[::-1].max((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(maps, again[::-1], rtol=1e-3, atol=1e-4)
    assert all(np.array_equal(value, fitted.state()[name]) for name, value in method.state().items() if "net" in name)


def test_a_generator_is_not_fitted_to_a_frame_that_is_hardly_trusted(fitted):
    plain, masked = gan(relax="none"), gan(relax="masked")
    image = frames(1).images_NHWC
    maps = []
    for method, limit in ((plain, 0.0), (masked, 0.0), (masked, 1e9)):
        method.load_state(fitted.state())
        method.suspicious_above, method.trusted_below = 0.0, limit
        maps.append(method.maps(image))
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2])


def test_frames_that_are_not_suspicious_pass_with_the_encoder_alone(fitted):
    refined, encoded = gan(), gan(refine_steps=0)
    for method in (refined, encoded):
        method.load_state(fitted.state())
    images = frames().images_NHWC
    scores, once = encoded.maps(images).max((1, 2)), refined.maps(images).max((1, 2))
    is_suspicious = scores > fitted.suspicious_above
    assert is_suspicious.sum() == 1  # of six, above the ninth tenth
    np.testing.assert_array_equal(scores[~is_suspicious], once[~is_suspicious])
    assert (scores[is_suspicious] != once[is_suspicious]).all()


def test_how_many_frames_are_suspicious_is_asked_for(fitted):
    method = gan(refine_above=0.5)
    method.load_state(fitted.state())
    method.remember(frames(), 0)
    scores = gan(refine_steps=0)
    scores.load_state(method.state())
    assert (scores.maps(frames().images_NHWC).max((1, 2)) > method.suspicious_above).sum() == 3  # of six


def test_what_is_usual_is_the_line_through_all_pixels():
    torch.manual_seed(0)
    y = torch.rand(4, 3, HEIGHT, WIDTH)
    steep = steepness(y)
    parts = torch.cat([2 + 3 * steep, 5 - steep, 4 + 0 * steep], dim=1)
    usual = Usual.of_good([(y[:3], parts[:3]), (y[3:], parts[3:])], has_places=False)
    torch.testing.assert_close(usual.at(y)[:, 0], parts[:, 0], rtol=1e-3, atol=1e-3)
    # Where it is steeper less would be usual: such a line is not believed.
    torch.testing.assert_close(usual.at(y)[:, 1:].mean((0, 2, 3)), parts[:, 1:].mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert usual.at(y)[:, 1].std() < 1e-3
    flat = torch.zeros(1, 3, HEIGHT, WIDTH)
    assert (Usual.of_good([(flat, flat)], has_places=True).at(flat) > 0).all()


def test_a_place_that_always_differs_is_expected_to():
    y = torch.zeros(2, 3, HEIGHT, WIDTH)
    parts = torch.ones(2, 1, HEIGHT, WIDTH)
    parts[..., 16:32, 20:60] = 5.0
    usual = Usual.of_good([(y, parts)], has_places=True).at(y)[0, 0]
    mean, least = float(parts.mean()), 0.3
    assert float(usual[24, 40]) == pytest.approx(mean * (5 + least * mean) / (mean + least * mean), rel=1e-4)
    assert float(usual[0, 0]) == pytest.approx(mean * (1 + least * mean) / (mean + least * mean), rel=1e-4)
