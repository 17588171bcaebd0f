"""From one product to another: what a detector fitted elsewhere is worth here.

Beside the detector that is fine-tuned from it (`detector.init_from`) stand two others: the foreign one as it is, with
thresholds from this run's good images, and one fitted on this run's good images from scratch.
"""

from dataclasses import replace

from ssad_ray.pipelines.fit import fit, load_source, publish
from ssad_ray.pipelines.run import Announce, Run


def fit_beside(run: Run, announce: Announce) -> dict[str, str]:
    """Put the two other detectors into the run, unless they are there; return role -> name."""
    method = run.detector
    zero_shot, scratch = f"{method}-zero-shot", f"{method}-scratch"
    if not run.model_path(zero_shot).exists():
        source = load_source(run)
        with run.timed(f"fit {zero_shot}"):
            publish(run, zero_shot, replace(source, name=zero_shot, calibration=None, profile=None), announce)
    detector = run.config.detector.model_copy(update={"init_from": None})
    fit(replace(run, config=run.config.model_copy(update={"detector": detector})), scratch, method, announce)
    return {"zero-shot": zero_shot, "from scratch": scratch}
