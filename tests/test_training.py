"""Gradient descent in one process, and the same through Ray: tasks, workers, deaths."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import ray
import torch
from numpy.typing import NDArray
from ray import cloudpickle
from torch import Tensor, nn
from torch.nn import functional

from ssad_ray.config import ResourcesConfig, RunConfig
from ssad_ray.core.rng import generator
from ssad_ray.errors import ConfigError, UnavailableError
from ssad_ray.method_config import TrainingConfig
from ssad_ray.methods import training
from ssad_ray.methods.base import State, TrainingFrames
from ssad_ray.methods.devices import make_repeatable
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.methods.training import Trainer, learning_rate, network_state, save_state, train
from ssad_ray.pipelines.session import session
from ssad_ray.pipelines.training import Member, _keys, train_members

HEIGHT, WIDTH, STEPS = 32, 48, 24
REST_AFTER_13 = [list(range(10, STEPS)), list(range(5, STEPS))]
"""From the last checkpoint, or from the one before: Ray Train takes over a checkpoint later than it is reported."""
# Ray's workers cannot import test files.
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]


class TinyReconstructor:
    """Two convolutions that learn to give back noisy frames, and remember what they made of all of them."""

    training: ClassVar[TrainingConfig] = TrainingConfig(
        steps=STEPS, batch_size=6, learning_rate=0.02, shards=3, checkpoint_every=5
    )

    def __init__(self) -> None:
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
        )
        self.remembered = np.zeros(0, np.float32)

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:  # noqa: ARG003
        return cls()

    def initialise(self, frames: TrainingFrames, seed: int) -> None:  # noqa: ARG002
        make_repeatable(1)
        torch.manual_seed(seed)
        for module in self.network:
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.reset_parameters()

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Mapping[str, NDArray[Any]]:
        rng = generator(seed, step, shard, "batch")
        chosen = frames.images_NHWC[rng.integers(len(frames.images_NHWC), size=2)]
        noise = rng.normal(0.0, 0.1, chosen.shape).astype(np.float32)
        return {"clean": chosen, "noise": noise.transpose(0, 3, 1, 2)}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        clean = batch["clean"].permute(0, 3, 1, 2).float() / 255.0
        return functional.mse_loss(self.network(clean + batch["noise"]), clean)

    def remember(self, frames: TrainingFrames, seed: int) -> None:
        pixels = torch.from_numpy(frames.images_NHWC).permute(0, 3, 1, 2).float() / 255.0
        self.remembered = self.network(pixels).detach().numpy() + np.float32(seed)

    def state(self) -> State:
        return {**network_state(self.network), "remembered": self.remembered}


class Watched(TinyReconstructor):
    """Writes down the steps it takes; once, the process dies or waits at a step."""

    log_dir: ClassVar[str]
    die_at: ClassVar[int] = -1
    wait_at: ClassVar[tuple[int, int]] = (-1, -1)

    def batch(self, frames: TrainingFrames, seed: int, step: int, shard: int) -> Mapping[str, NDArray[Any]]:
        folder = Path(self.log_dir)
        with (folder / "steps.txt").open("a") as file:
            file.write(f"{seed} {step} {shard} {os.getpid()}\n")
        if shard == 1 and step == self.die_at and not (folder / "died").exists():
            (folder / "died").touch()
            os._exit(1)
        if (seed, step) == self.wait_at:
            (folder / "waits").touch()
        while (seed, step) == self.wait_at and not (folder / "go_on").exists():
            time.sleep(0.05)
        return super().batch(frames, seed, step, shard)


class Diverging(TinyReconstructor):
    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        return super().loss(batch) * float("inf")


def frames_of(seed: int) -> TrainingFrames:
    colours = np.random.default_rng(seed).integers(60, 200, (5, 1, 1, 3))
    ramp = np.linspace(-50, 50, WIDTH).reshape(1, 1, WIDTH, 1)
    return TrainingFrames.of_good((colours + ramp + np.zeros((1, HEIGHT, 1, 1))).astype(np.uint8))


FRAMES = frames_of(0)
DEFAULTS = RunConfig()


def members_of(*seeds: int) -> list[Member]:
    return [Member(np.arange(5) != seed, seed) for seed in seeds]


def trained(seed: int = 0, **changes: Any) -> State:
    method = TinyReconstructor()
    train(method, FRAMES.only(np.arange(5) != seed), seed, **changes)
    return method.state()


def are_equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def with_workers(number: int) -> RunConfig:
    return RunConfig(resources=ResourcesConfig(train_workers=number))


def steps_taken(log_dir: Path, seed: int) -> list[int]:
    rows = [line.split() for line in (log_dir / "steps.txt").read_text().splitlines()]
    return [int(step) for row_seed, step, shard, _ in rows if (int(row_seed), int(shard)) == (seed, 1)]


def wait_until_gone(pids: set[int]) -> None:
    """Ray ends the workers of a dead driver, but not at once."""
    for pid in pids:
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(0.1)


def test_the_loss_falls_and_every_step_is_told() -> None:
    told: list[tuple[int, int, float]] = []
    trained(progress=lambda *now: told.append(now))
    assert [step for step, _, _ in told] == list(range(1, STEPS + 1))
    assert {steps for _, steps, _ in told} == {STEPS}
    assert told[-1][2] < 0.3 * told[0][2]


def test_the_seed_decides_every_bit() -> None:
    assert are_equal(trained(0), trained(0))
    method = TinyReconstructor()
    train(method, FRAMES.only(np.arange(5) != 0), seed=1)
    assert not are_equal(trained(0), method.state())


@pytest.mark.parametrize("stop", [1, 5, 17, STEPS - 1])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    path = tmp_path / "run.checkpoint"

    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint_path=path, progress=interrupt)
    resumed: list[int] = []
    state = trained(checkpoint_path=path, progress=lambda *now: resumed.append(now[0]))
    # The step's checkpoint is written after its progress is told, so the interrupted step is not saved.
    assert resumed[0] == (stop - 1) // 5 * 5 + 1
    assert are_equal(state, trained())


def test_a_trainer_takes_over_the_state_of_another_and_leaves_it_alone() -> None:
    trainers = [Trainer(TinyReconstructor(), frames_of(0), 0) for _ in range(2)]
    for _ in range(3):
        trainers[0].apply([trainers[0].shard_gradient(shard)[0] for shard in range(3)])
    before = trainers[0].state()
    trainers[1].load_state(before)
    assert trainers[1].step == 3
    assert are_equal(before, trainers[1].state())
    trainers[1].apply([trainers[1].shard_gradient(shard)[0] for shard in range(3)])
    assert are_equal(before, trainers[0].state())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    options = TrainingConfig(steps=1000, learning_rate=0.5)
    rates = [learning_rate(options, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.5 / 50)
    assert max(rates) == pytest.approx(0.5)
    assert rates.index(max(rates)) in (49, 50)
    assert all(before > after for before, after in pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(0.005, rel=0.01)
    assert 0.0 < learning_rate(TrainingConfig(steps=1, learning_rate=0.5), 0) <= 0.5


def test_divergence_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError, match=r"diverged at step 0; lower training.learning_rate \(now 0.02\)"):
        train(Diverging(), frames_of(0), 0)


def test_a_write_that_breaks_off_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.checkpoint"
    save_state({"step": np.array(1)}, path)
    old = path.read_bytes()

    def break_off(state: State, path: Path) -> None:
        path.write_bytes(old[:9])
        raise OSError("no space left")

    monkeypatch.setattr(training, "save_file", break_off)
    with pytest.raises(UnavailableError, match=r"a\.checkpoint: cannot be written \(no space left\)"):
        save_state({"step": np.array(2)}, path)
    assert path.read_bytes() == old


def test_whatever_a_result_depends_on_names_its_files() -> None:
    def key(method: type = TinyReconstructor, config: RunConfig = DEFAULTS, seed: int = 0, **changes: Any) -> str:
        member = {"kept_N": np.arange(5) != 0, "initial": {"w": np.zeros(2)}, **changes}
        return _keys(method, config, member.pop("frames", FRAMES), [Member(seed=seed, **member)])[0]

    others = [key(Watched), key(config=RunConfig(seed=1)), key(frames=frames_of(7)), key(seed=1), key(initial=None)]
    others += [key(kept_N=np.arange(5) != 1), key(initial={"w": np.ones(2)})]
    assert len({key(), *others}) == 1 + len(others)
    assert key(config=with_workers(2)) == key(config=RunConfig(rounds=2)) == key()


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(ResourcesConfig(train_workers=2, object_store_bytes=100 << 20)):
        yield


def on_ray(test: Any) -> Any:
    return pytest.mark.ray(pytest.mark.usefixtures("ray_session")(test))


@on_ray
@pytest.mark.parametrize("workers", [0, 2])  # one worker: the killed driver's, below
def test_any_number_of_workers_gives_the_bits_of_one_process(tmp_path: Path, workers: int) -> None:
    told: list[tuple[int, int, float]] = []
    request = with_workers(workers), FRAMES, members_of(0, 1), tmp_path
    states = train_members(TinyReconstructor, *request, lambda *now: told.append(now))
    assert [are_equal(state, trained(seed)) for seed, state in enumerate(states)] == [True, True]
    assert told[-1][:2] == (2 * STEPS, 2 * STEPS)
    assert 0.0 < told[-1][2] < 0.1
    assert all(before[0] <= after[0] for before, after in pairwise(told))


@on_ray
@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_that_dies_is_replaced_and_no_bit_changes(tmp_path: Path, workers: int) -> None:
    class Dying(Watched):
        log_dir = str(tmp_path)
        die_at = 13

    (state,) = train_members(Dying, with_workers(workers), FRAMES, members_of(0), tmp_path / "run")
    assert (tmp_path / "died").exists()
    assert are_equal(state, trained(0))
    steps = steps_taken(tmp_path, seed=0)
    assert steps[:14] == list(range(14))
    assert steps[14:] in REST_AFTER_13


@on_ray
def test_a_finished_member_is_not_trained_again(tmp_path: Path) -> None:
    class Counting(Watched):
        log_dir = str(tmp_path)

    run = tmp_path / "run"
    first = train_members(Counting, with_workers(0), FRAMES, members_of(0), run)
    again = train_members(Counting, with_workers(0), FRAMES, members_of(0, 1), run)
    assert are_equal(first[0], again[0])
    assert steps_taken(tmp_path, seed=0) == steps_taken(tmp_path, seed=1) == list(range(STEPS))


@on_ray
def test_a_method_without_gradient_is_fitted_in_a_task(tmp_path: Path) -> None:
    told: list[int] = []
    request = with_workers(2), FRAMES, members_of(0), tmp_path
    (state,) = train_members(PixelReference, *request, lambda *now: told.append(now[0]))
    assert state["median_HWC"].shape == (HEIGHT, WIDTH, 3)
    assert told == [1]


@on_ray
@pytest.mark.parametrize("workers", [0, 1])
def test_refusals_arrive_as_they_were_raised(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ConfigError, match="diverged at step 0") as caught:
        train_members(Diverging, with_workers(workers), FRAMES, members_of(0), tmp_path)
    assert type(caught.value) is ConfigError
    gpu = RunConfig(resources=ResourcesConfig(use_gpu=True))
    with pytest.raises(UnavailableError, match="the cluster has no GPU"):
        train_members(TinyReconstructor, gpu, FRAMES, members_of(0), tmp_path)


def test_more_workers_than_shards_are_refused_before_ray_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_workers is 4, but .* training.shards = 3 .* at most 3 workers"):
        train_members(TinyReconstructor, with_workers(4), FRAMES, members_of(0), tmp_path)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_driver_goes_on_from_its_checkpoints(tmp_path: Path, workers: int) -> None:
    def start() -> "subprocess.Popen[bytes]":
        paths = {"PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen([sys.executable, __file__, tmp_path, str(workers)], env=os.environ | paths)

    driver = start()
    while not ((tmp_path / "waits").exists() and any(tmp_path.glob("run/member-0-*.safetensors"))):
        assert driver.poll() is None, "the driver ended before it could be killed"
        time.sleep(0.05)
    time.sleep(2.0)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until_gone({int(line.split()[3]) for line in (tmp_path / "steps.txt").read_text().splitlines()})
    (tmp_path / "steps.txt").rename(tmp_path / "earlier_steps.txt")
    (tmp_path / "go_on").touch()
    shutil.rmtree((tmp_path / "ray_dir").read_text())  # what a killed driver cannot clean up itself
    assert start().wait(timeout=300) == 0
    assert steps_taken(tmp_path, seed=0) == []
    assert steps_taken(tmp_path, seed=1) in REST_AFTER_13
    assert (tmp_path / "is_equal").read_text() == "[True, True]"


def _drive(log_dir: Path, workers: int) -> None:
    class Waiting(Watched):
        wait_at = (1, 13)

    Waiting.log_dir = str(log_dir)
    with session(ResourcesConfig(train_workers=workers, object_store_bytes=100 << 20)):
        (node,) = ray.nodes()  # type: ignore[no-untyped-call]
        (log_dir / "ray_dir").write_text(str(Path(node["RayletSocketName"]).parents[2]))
        states = train_members(Waiting, with_workers(workers), FRAMES, members_of(0, 1), log_dir / "run")
    (log_dir / "is_equal").write_text(str([are_equal(state, trained(seed)) for seed, state in enumerate(states)]))


if __name__ == "__main__":
    _drive(Path(sys.argv[1]), int(sys.argv[2]))
