import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private.utils import get_num_cpus
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from ssad_ray.config import ResourcesConfig, validate_config
from ssad_ray.errors import ArtifactError, ConfigError, UnavailableError
from ssad_ray.methods.base import TrainingFrames
from ssad_ray.methods.pixel_reference import PixelReference
from ssad_ray.pipelines.session import _own_folder, our_errors, session, unwrap
from ssad_ray.pipelines.training import Member, train_members

RESOURCES = ResourcesConfig(object_store_bytes=128 << 20)


def descendants(pid: int) -> set[int]:
    children = {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    return children.union(*(descendants(child) for child in children))


def listeners(pids: set[int]) -> list[str]:
    lines = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.split()[3] for line in lines if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}]


@pytest.mark.ray
@pytest.mark.skipif(not shutil.which("ss"), reason="lists sockets with ss")
def test_a_session_is_private_listens_on_loopback_only_and_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that joining would wait for in vain
    monkeypatch.setenv("HOME", str(tmp_path))
    with session(RESOURCES):
        folder = Path(ray._private.worker._global_node.get_session_dir_path())
        assert ray.cluster_resources()["CPU"] >= get_num_cpus(override_docker_cpu_warning=True) + 2
        with session(RESOURCES):
            pass
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        addresses = listeners({os.getpid(), *descendants(os.getpid())})
        assert folder.exists()
    assert len(addresses) > 5
    assert all(re.match(r"127\.0\.0\.1:|\[(::1|::ffff:127\.0\.0\.1)\]:", address) for address in addresses), addresses
    assert not ray.is_initialized()
    assert not folder.parent.exists()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_an_address_where_no_cluster_answers_is_refused_with_a_remedy():
    with (
        pytest.raises(UnavailableError, match=r"no Ray cluster answers at 'nowhere'[\s\S]*host:port"),
        session(RESOURCES, "nowhere"),
    ):
        pass


@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: WorkerGroupError("failed", {0: ValueError("other"), 1: e})])
def test_our_error_is_found_inside_whatever_ray_wraps_it_in(wrap):
    ours = ArtifactError("broken")
    ours.args = ("broken\nTo change retry attempts, configure Ray",)
    copied = wrap(RayTaskError("work", "traceback", ours).as_instanceof_cause())
    with pytest.raises(ArtifactError, match=r"^broken$"), our_errors():
        raise RuntimeError("job failed") from copied


def test_an_error_that_is_not_ours_stays_as_it_is():
    assert unwrap(RayTaskError("work", "traceback", KeyError("other"))) is None
    with pytest.raises(KeyError), our_errors():
        raise KeyError("other")


def test_ray_that_is_stopped_is_said_to_have_failed(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, signal, sys, time, ray\n"
        "from ssad_ray.config import ResourcesConfig\n"
        "from ssad_ray.errors import UnavailableError\n"
        "from ssad_ray.pipelines.session import our_errors, session\n"
        "try:\n"
        "    with session(ResourcesConfig(object_store_bytes=100 << 20)), our_errors():\n"
        "        work = ray.remote(lambda: time.sleep(600)).remote()\n"
        "        ray.wait([work], timeout=1)\n"
        "        os.kill(ray._private.worker._global_node.all_processes['raylet'][0].process.pid, signal.SIGTERM)\n"
        "        ray.get(work)\n"
        "except UnavailableError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search(r"Ray failed while it worked: [\s\S]*the same command again", told), told


def test_a_driver_that_is_asked_to_end_ends_as_by_ctrl_c(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(
        "import os, signal, threading, time, ray\n"
        "from ssad_ray.config import ResourcesConfig\n"
        "from ssad_ray.pipelines.session import session\n"
        "with session(ResourcesConfig(object_store_bytes=100 << 20)):\n"
        "    threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    ray.get(ray.remote(lambda: time.sleep(600)).remote())\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr.rstrip().endswith("KeyboardInterrupt"), ended.stderr
    assert ended.returncode == -signal.SIGINT


def test_training_that_no_node_has_cpus_for_is_refused_instead_of_waiting(tmp_path):
    config = validate_config({"resources": {"threads_per_worker": 256}})
    frames = TrainingFrames.of_good(np.zeros((2, 16, 16, 3), np.uint8))
    with session(RESOURCES), pytest.raises(UnavailableError, match=r"1 workers of 256 logical CPUs each.*room for 0"):
        train_members(PixelReference, config, frames, [Member(np.ones(2, bool), seed=0)], tmp_path)


def test_ray_client_is_refused_because_ray_data_does_not_run_through_it():
    with pytest.raises(ConfigError, match="on a node of the cluster"), session(RESOURCES, "ray://127.0.0.1:10001"):
        pass


def test_a_session_without_gpus_hides_them_and_gives_them_back(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with session(RESOURCES.model_copy(update={"use_gpu": False})):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_importing_the_pipelines_starts_nothing_and_changes_no_environment():
    code = (
        "import os, cv2, ray; before = dict(os.environ); import ssad_ray.pipelines.label;"
        "assert not ray.is_initialized(); assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_folders_of_killed_drivers_are_removed_and_those_of_living_ones_are_not() -> None:
    hold = (
        "import time; from ssad_ray.pipelines.session import _own_folder\n"
        "with _own_folder() as folder: print(folder, flush=True); time.sleep(600)"
    )
    drivers = [subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, living = (Path(driver.stdout.readline().strip()) for driver in drivers)
        drivers[0].kill()
        drivers[0].wait()
        assert killed.exists()
        with _own_folder() as own:
            assert not killed.exists()
            assert living.exists()
            assert Path(own).exists()
        assert not Path(own).exists()
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
            driver.stdout.close()
