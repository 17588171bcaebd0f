"""The outcome of a run: figures for programs in report.json, a page for people in report.html."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from ssad_ray import __version__
from ssad_ray.core.records import Stage, path_of
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.labels.versions import LabelVersion, list_versions, read_labels, read_lineage
from ssad_ray.pipelines.folds import assign_folds
from ssad_ray.pipelines.label_quality import compare_with_truth
from ssad_ray.pipelines.report_page import ReportedModel, render
from ssad_ray.pipelines.report_pictures import MAX_PICTURES, choose, illustrate, illustrate_held_out
from ssad_ray.pipelines.run import Announce, Run, read_json, write_json, write_text

_PACKAGES = {"torch": "torch", "ray": "ray", "numpy": "numpy", "opencv": "opencv-python-headless"}

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Models:
    """The artifacts that a report is about.

    Attributes:
        floor: The baseline.
        detector: The detector of round 1.
        segmenters: Of each round, in order; at least one.
        yardstick: The segmenter that learnt from true masks, where there is one.
        transfers: Detectors beside one that was fine-tuned from another product's: role -> name.
    """

    floor: str
    detector: str
    segmenters: tuple[str, ...]
    yardstick: str | None
    transfers: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order of the report."""
        last = [self.yardstick] if self.yardstick else []
        return (self.floor, *self.transfers.values(), self.detector, *self.segmenters, *last)


def write_report(run: Run, models: Models, announce: Announce) -> Path:
    """Write report.json and report.html from what lies in the run folder; return where the page is.

    Every model has been evaluated and every segmenter has passed the gate. Pictures are of test images; where there
    are none, of online images.
    """
    rows: dict[Stage, list[ManifestRow]] = {stage: run.rows(stage) for stage in get_args(Stage)}
    facts = gather(run, models, rows)
    write_json(run.report_path, facts)
    stage: Stage = "test" if rows["test"] else "online"
    last = run.model_path(models.segmenters[-1])
    shown = choose(rows[stage], MAX_PICTURES)
    detector_path, progress = run.model_path(models.detector), announce("report: pictures")
    illustrations = illustrate(detector_path, last, shown, run.config, progress)
    good = run.rows("train")
    row_at = {row.path: row for row in good}
    doubtful = [row_at[path] for path in facts["least_normal"]["scores"]]
    folds = assign_folds(good, run.config)
    least_normal = illustrate_held_out(detector_path, doubtful, folds, run.config, announce("report: good images"))
    reported = [
        ReportedModel(name, role, _metrics(run, name), run.described(name).calibration, name == models.yardstick)
        for name, role in _roles(models).items()
    ]
    page_path = run.report_path.with_suffix(".html")
    write_text(page_path, render(facts, reported, stage, illustrations, least_normal))
    return page_path


def gather(run: Run, models: Models, rows: Mapping[Stage, list[ManifestRow]]) -> Facts:
    """Return the content of report.json."""
    metrics = {name: _metrics(run, name) for name in models.names}
    labels = {name: read_lineage(str(run.labels_path), name) for name in list_versions(str(run.labels_path))}
    gates = {name: read_json(run.gate_path(name)) for name in models.segmenters}
    every_row = [row for members in rows.values() for row in members]
    return {
        "category": ", ".join(sorted({row.category for row in every_row if row.error is None})),
        "champion": run.champion,
        "floor": metrics[models.floor],
        "detector": metrics[models.detector],
        "segmenter": metrics[models.segmenters[-1]],
        **({"yardstick": metrics[models.yardstick]} if models.yardstick else {}),
        **({"transfer": {role: metrics[name] for role, name in models.transfers.items()}} if models.transfers else {}),
        "rounds": _rounds(models, metrics, gates),
        "label_quality": {
            "gates": gates,
            "versions": {
                name: {
                    "model": each.lineage.model,
                    "created": each.created,
                    **each.counts,
                    "truth": _label_quality(run, name, rows["online"]),
                }
                for name, each in labels.items()
            },
        },
        "least_normal": _least_normal(run, models.detector),
        "counts": {
            "images": {stage: _by_type(members) for stage, members in rows.items()},
            "evaluated": {name: read_json(run.evaluation_path(name))["counts"] for name in models.names},
            "regions": {name: each.counts["regions"] for name, each in labels.items()},
            "quarantined": {row.path: row.error for row in every_row if row.error} | _refused(run, labels),
            "warnings": {row.path: row.warning for row in every_row if row.warning},
        },
        "seconds": run.seconds,
        "versions": {
            "ssad_ray": __version__,
            "python": platform.python_version(),
            **{name: version(package) for name, package in _PACKAGES.items()},
        },
    }


def _label_quality(run: Run, version: str, rows: list[ManifestRow]) -> Facts | None:
    verdicts = {verdict.sample_id: verdict for verdict in read_labels(str(run.labels_path), version)}
    quality = compare_with_truth(rows, verdicts, run.config.data.max_image_bytes)
    return asdict(quality) if quality else None


def _least_normal(run: Run, name: str) -> Facts:
    detector = run.described(name)
    assert detector.calibration is not None, "the detector of a report is calibrated"  # noqa: S101
    return {
        "threshold": detector.calibration.image_threshold,
        "scores": {path_of(each["sample_id"]): each["score"] for each in detector.card["least_normal"]},
    }


def _metrics(run: Run, name: str) -> dict[str, float | None]:
    metrics: dict[str, float | None] = read_json(run.evaluation_path(name))["metrics"]
    return metrics


def _rounds(models: Models, metrics: Mapping[str, Any], gates: Mapping[str, Any]) -> list[Facts]:
    """Return what each round made, and from whose labels: those of the champion of the round before."""
    rounds = []
    labeller = models.detector
    for number, name in enumerate(models.segmenters, start=1):
        decision = gates[name]["decision"]
        rounds.append({"round": number, "segmenter": name, "labels": labeller, **decision, "metrics": metrics[name]})
        labeller = name if decision["is_promoted"] else labeller
    return rounds


def _roles(models: Models) -> dict[str, str]:
    """Return name -> what it is, in words."""
    roles = {models.floor: "floor"} | {name: f"detector, {role}" for role, name in models.transfers.items()}
    roles[models.detector] = "detector, fine-tuned" if models.transfers else "detector"
    roles |= {name: f"segmenter, round {number}" for number, name in enumerate(models.segmenters, start=1)}
    return roles | ({models.yardstick: "yardstick (true masks)"} if models.yardstick else {})


def _by_type(rows: Iterable[ManifestRow]) -> dict[str, int]:
    usable = (row for row in rows if row.error is None)
    return dict(sorted(Counter(row.defect_type or "unlabelled" for row in usable).items()))


def _refused(run: Run, labels: Mapping[str, LabelVersion]) -> dict[str, str]:
    """Return the images that could be catalogued but not labelled, and why."""
    incomplete = [name for name, each in labels.items() if each.counts["errors"]]
    verdicts = (verdict for name in incomplete for verdict in read_labels(str(run.labels_path), name))
    return {path_of(verdict.sample_id): verdict.error for verdict in verdicts if verdict.error}
