"""A run folder: what lies where, and which stages are done.

    RUN/config.yaml                resolved config
    RUN/manifest.parquet           every image, as catalogued
    RUN/split.json                 which image belongs to which stage
    RUN/models/<name>/             artifacts; RUN/models/champion names one
    RUN/labels/<version>/          label versions
    RUN/types/<version>.csv        how sure defect types are that spread to the regions of a label version
    RUN/gates/<name>.json          why a challenger was promoted or refused
    RUN/evaluation/<name>.json     figures of one artifact on the test stage
    RUN/report.json, report.html   all figures of a loop, and the page that shows them
    RUN/seconds.json               how long each stage took
    RUN/work/                      checkpoints of stages that are not finished
    RUN/lock                       held by the process that works on the run

A stage is done when its result is there; results appear whole or not at all. Running a verb again therefore goes on
where it was killed, and repeats nothing.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from ssad_ray.config import NO_PART_OF_RESULTS, RunConfig, load_config
from ssad_ray.core.records import Stage
from ssad_ray.core.storage import checked_name, write_bytes
from ssad_ray.datasets.manifest import ManifestRow, read_manifest
from ssad_ray.datasets.splits import load_split
from ssad_ray.errors import ArtifactError, ConfigError, DataError, UnavailableError
from ssad_ray.methods import AUTO, check_detectors
from ssad_ray.methods.artifact import Artifact, Description, describe_artifact, load_artifact

_DAMAGED = "put an older one back, or remove what can be made again: figures and decisions, not a split"

Announce = Callable[[str], Callable[..., None]]
"""Called with the title of a piece of work; what it returns is called with (done, total, …) as the work goes on."""


StageFunction = TypeVar("StageFunction", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder and the config it belongs to."""

    path: Path
    config: RunConfig

    @property
    def config_path(self) -> Path:
        """Where the resolved config is."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Where the catalogue is."""
        return self.path / "manifest.parquet"

    @property
    def split_path(self) -> Path:
        """Where the split is."""
        return self.path / "split.json"

    @property
    def labels_path(self) -> Path:
        """Where label versions are."""
        return self.path / "labels"

    def types_path(self, version: str) -> Path:
        """Where the defect types of a label version are listed, the least certain first."""
        return self.path / "types" / f"{version}.csv"

    @property
    def report_path(self) -> Path:
        """Where the figures are."""
        return self.path / "report.json"

    def model_path(self, name: str) -> Path:
        """Where the artifact of a name is, or will be.

        Raises:
            ConfigError: No artifact can have this name.
        """
        if name == self.champion_path.name:
            raise ConfigError(f"{name!r} cannot name a model: it stands for the one in service")
        return self.path / "models" / checked_name(name, "a model")

    def work_path(self, name: str) -> Path:
        """Where an unfinished stage keeps its checkpoints."""
        return self.path / "work" / name

    def refuse_unknown(self, name: str) -> None:
        """Raise where the run has no artifact of this name.

        Raises:
            ArtifactError: There is none.
            ConfigError: There cannot be one.
        """
        if not self.model_path(name).is_dir():
            there = sorted(path.name for path in (self.path / "models").glob("*/") if path.suffix != ".partial")
            raise ArtifactError(f"{self.path} has no model {name!r}; there are {', '.join(there) or 'none'}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine, or of all where the file system can, from working on the run.

        Raises:
            UnavailableError: One is at work.
        """
        path = self.path / "lock"
        with ExitStack() as stack:
            try:
                is_held = False
                while not is_held:
                    self.path.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context(path.open("a"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    is_held = os.fstat(file.fileno()).st_nlink > 0  # or another process removed it just now
            except BlockingIOError as error:
                raise UnavailableError(
                    f"another `ssad` works on {self.path}; wait for its end, or name another --out"
                ) from error
            except OSError:  # what cannot be written needs none, and some file systems have none
                pass
            try:
                yield
            finally:
                if not self.manifest_path.exists():
                    with suppress(OSError):  # it did not become a run
                        path.unlink()
                        self.path.rmdir()

    def evaluation_path(self, name: str) -> Path:
        """Where the figures of an artifact are."""
        return self.path / "evaluation" / f"{name}.json"

    def gate_path(self, name: str) -> Path:
        """Where the decision about a challenger is."""
        return self.path / "gates" / f"{name}.json"

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage took so far, in the order in which they began."""
        path = self.path / "seconds.json"
        if not path.exists():
            return {}
        with suppress(ArtifactError):  # no work stops for these
            return {name: value for name, value in read_json(path).items() if isinstance(value, int | float)}
        return {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add what the body takes to the seconds of a stage; attempts add up."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self.seconds
            total = seconds.get(stage, 0.0) + time.monotonic() - start
            with suppress(UnavailableError):
                write_json(self.path / "seconds.json", {**seconds, stage: round(total, 1)})

    def artifact(self, name: str) -> Artifact:
        """Load an artifact of this run."""
        return load_artifact(self.model_path(name))

    def described(self, name: str) -> Description:
        """Say what an artifact of this run is, without loading its weights."""
        return describe_artifact(self.model_path(name))

    @property
    def champion_path(self) -> Path:
        """The file that names the artifact in service."""
        return self.path / "models" / "champion"

    @property
    def champion(self) -> str:
        """Name of the artifact in service."""
        if not self.champion_path.exists():
            raise ArtifactError(f"{self.path} has no champion yet; run `ssad fit` or `ssad loop` with this --out")
        try:
            name = self.champion_path.read_text(encoding="utf-8").strip()
            self.model_path(name)
        except (OSError, ValueError, ConfigError) as error:
            raise ArtifactError(
                f"{self.champion_path} does not name a model ({error}); write the name of one of models/ into it"
            ) from error
        return name

    def promote(self, name: str) -> None:
        """Put an artifact into service."""
        write_text(self.champion_path, name + "\n")

    @property
    def detector(self) -> str:
        """Name of the method that the pretext task fits; for routine 2 by what most of the online images have."""
        name = self.config.detector.name
        if name != AUTO:
            return name
        if read_json(self.split_path)["protocol"] != "routine2":
            return "draem"
        rows = self.rows("online")
        num_with_template = sum(row.template_uri is not None for row in rows)
        return "template_difference" if 2 * num_with_template > len(rows) else "gan_inversion"

    @property
    def has_begun(self) -> bool:
        """Whether anything was made of the data yet."""
        return any(any((self.path / name).glob("*")) for name in ("models", "work"))

    def rows(self, stage: Stage) -> list[ManifestRow]:
        """Return the rows of a stage in the order of their ids; quarantined ones belong to none but `unused`.

        Raises:
            DataError: The run has no data yet.
        """
        if not self.split_path.exists():
            raise DataError(f"{self.path} has no data yet; `ssad fit` and `ssad loop` take it by --data")
        rows = read_manifest(str(self.manifest_path))
        stages = load_split(str(self.split_path), rows)
        return [row for row in rows if stages[row.sample_id] == stage]


def timed(stage: str) -> Callable[[StageFunction], StageFunction]:
    """Make a function of a run and a model's name add its time to the run's seconds, as `<stage> <name>`."""

    def decorate(function: StageFunction) -> StageFunction:
        @wraps(function)
        def run_timed(run: Run, name: str, *args: Any, **options: Any) -> Any:
            with run.timed(f"{stage} {name}"):
                return function(run, name, *args, **options)

        return cast(StageFunction, run_timed)

    return decorate


def config_of(path: Path) -> Path | None:
    """Return where the config of a run is; None where there is no run yet."""
    config_path, manifest_path = path / "config.yaml", path / "manifest.parquet"
    return config_path if config_path.exists() and manifest_path.exists() else None


def open_run(path: Path, config: RunConfig) -> Run:
    """Name a run folder, or one made with the same config to go on with; nothing is written yet.

    Of a run that has its data but has not begun to work only what the data depend on has to stay the same.

    Raises:
        ConfigError: The folder has its data and belongs to another config; only `NO_PART_OF_RESULTS` may differ. Or no
            detector has the name that the config gives.
    """
    check_detectors(config.detector)
    run = Run(path, config)
    old = config_of(path)
    if old is not None:
        pinned = "" if run.has_begun else ("seed", "data.")
        changed = _changed(_identity(load_config(old)), _identity(config))
        changed = [each for each in changed if each.startswith(pinned)]
        if changed:
            raise ConfigError(
                f"{path} was made with another config; different are {', '.join(changed)}. Go on with the old one, or "
                "name another --out"
            )
    return run


def write_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new, never half of it."""
    write_bytes(str(path), text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON the same way."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ArtifactError: It cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {_DAMAGED}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} holds no JSON object; {_DAMAGED}")
    return content


def _identity(config: RunConfig) -> dict[str, Any]:
    return dict(_dotted(config.model_dump(mode="json", exclude=NO_PART_OF_RESULTS)))


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    names = (name for name in {**before, **after} if before.get(name) != after.get(name))
    return [f"{name} ({before.get(name)!r}, now {after.get(name)!r})" for name in names]
