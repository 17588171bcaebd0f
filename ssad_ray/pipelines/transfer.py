"""From one product to another: what a detector fitted elsewhere is worth here.

Beside the detector that is fine-tuned from it (`detector.init_from`) stand two others: the foreign one as it is, with
thresholds from this run's good images, and one fitted on this run's good images from scratch.
"""

from dataclasses import replace
from pathlib import Path

from ssad_ray.errors import ArtifactError
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.pipelines.fit import fit, publish
from ssad_ray.pipelines.run import Announce, Run

ZERO_SHOT = "zero-shot"
SCRATCH = "scratch"


def fit_beside(run: Run, source_path: Path, announce: Announce) -> dict[str, str]:
    """Put the two other detectors into the run, unless they are there; return role -> name."""
    method = run.config.detector.name
    names = {"zero-shot": f"{method}-{ZERO_SHOT}", "from scratch": f"{method}-{SCRATCH}"}
    _adopt(run, names["zero-shot"], source_path, announce)
    detector = run.config.detector.model_copy(update={"init_from": None})
    from_scratch = replace(run, config=run.config.model_copy(update={"detector": detector}))
    fit(from_scratch, names["from scratch"], method, announce)
    return names


def _adopt(run: Run, name: str, source_path: Path, announce: Announce) -> None:
    if run.model_path(name).exists():
        return
    source = load_artifact(source_path)
    if source.method != run.config.detector.name:
        raise ArtifactError(
            f"--init-from {source_path} is a {source.method}, the run's detector is {run.config.detector.name}; "
            f"name an artifact of the same method, or set detector.name={source.method}"
        )
    if len(source.members) != run.config.calibration.folds:
        raise ArtifactError(
            f"--init-from {source_path} has {len(source.members)} members; set calibration.folds={len(source.members)}"
        )
    publish(run, name, replace(source, name=name, calibration=None, profile=None), announce)
