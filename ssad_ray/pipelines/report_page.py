"""The page of a run: one file of HTML that needs nothing else."""

import base64
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ssad_ray.core.drawing import colour_levels
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Calibration
from ssad_ray.pipelines.report_chart import draw_chart
from ssad_ray.pipelines.report_pictures import Illustration

METRICS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_aupro": "AUPRO",
    "pixel_f1_max": "Pixel F1 max",
    "pooled_iou": "Pooled IoU",
    "mean_iou": "Mean IoU",
    "map_10": "AP, IoU 0.1",
    "map_30": "AP, IoU 0.3",
    "map_50": "AP, IoU 0.5",
    "tianchi_score": "Tianchi score",
}
_CURVES = ("image_auroc", "pixel_ap", "pixel_aupro", "pooled_iou", "mean_iou")
_NUM_HIGHLIGHTS = 3
_MAX_LISTED = 20
_STAGES = ("train", "online", "test", "unused")

Facts = Mapping[str, Any]
Metrics = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """A row of the table of figures.

    Attributes:
        name: Of the artifact.
        role: In words.
        metrics: On the test stage.
        calibration: Its thresholds.
        is_yardstick: Whether it learnt from ground truth, and so takes no part in the comparison.
    """

    name: str
    role: str
    metrics: Metrics
    calibration: Calibration | None
    is_yardstick: bool = False


def render(
    facts: Facts,
    models: Sequence[ReportedModel],
    stage: str,
    illustrations: Sequence[Illustration],
    least_normal: Sequence[Illustration],
) -> str:
    """Return the page.

    Args:
        facts: The content of report.json.
        models: In the order of the table.
        stage: Where the illustrations come from.
        illustrations: Ordered by defect type.
        least_normal: The good images that score highest, in that order.
    """
    environment = Environment(
        loader=PackageLoader("ssad_ray", "pipelines"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "duration": _duration, "data_uri": _data_uri}
    rounds = facts["rounds"]
    detector, segmenter = rounds[0]["labels"], rounds[-1]["segmenter"]
    points = [("detector", facts["detector"]), *((f"round {each['round']}", each["metrics"]) for each in rounds)]
    images = facts["counts"]["images"]
    truths = [each["truth"] for each in facts["label_quality"]["versions"].values()]
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        models=models,
        headers={name: METRICS[name] for name in METRICS if any(model.metrics[name] is not None for model in models)},
        best=_best([model.metrics for model in models if not model.is_yardstick]),
        missing=why_missing(facts["detector"], facts["counts"]["evaluated"][detector]),
        chart=draw_chart(points, {name: METRICS[name] for name in _CURVES}),
        highlights=_highlights(facts, {model.name: model.metrics for model in models}),
        rules=_rules(models),
        detector=detector,
        segmenter=segmenter,
        stage=stage,
        stages=_STAGES,
        types=_count_types(images),
        num_images=sum(sum(images[each].values()) for each in _STAGES),
        groups=[(name, list(members)) for name, members in groupby(illustrations, lambda each: each.row.defect_type)],
        num_shown=len(illustrations),
        least_normal=least_normal,
        has_truth=any(each.row.defect_type is not None for each in illustrations),
        labels_have_truth=any(truths),
        labels_have_boxes=any(truth["boxes"] for truth in truths if truth),
        colour_bar=encode_png(colour_levels(np.linspace(0.0, 1.0, 256)[np.newaxis])),
        max_listed=_MAX_LISTED,
    )


def why_missing(metrics: Metrics, counts: Mapping[str, int]) -> list[str]:
    """Say in words why figures are missing."""
    good, defective = counts.get("good_images", 0), counts.get("defective_images", 0)
    if good + defective == 0:
        return ["No test image has a known truth, so no figure can be computed; the gate below needs none."]
    reasons = []
    if metrics["image_auroc"] is None:
        reasons.append(
            f"Image AUROC and AP rank defective above good images; the test stage has {defective} defective and "
            f"{good} good ones."
        )
    if metrics["pixel_auroc"] is None or metrics["pooled_iou"] is None:
        with_mask = counts.get("pixel_images", 0) - good
        reasons.append(
            f"Pixel figures and IoU need true masks; {with_mask} of {defective} defective test images have one."
        )
    if metrics["map_50"] is None:
        reasons.append("mAP and Tianchi score need true boxes or masks; no defective test image has either.")
    return reasons


def _best(rows: Sequence[Metrics]) -> dict[str, str]:
    """Return the largest figure of each column, as it is printed; none where all are the same."""
    columns = {metric: {_figure(row[metric]) for row in rows} for metric in METRICS}
    return {metric: max(texts - {"–"}) for metric, texts in columns.items() if len(texts - {"–"}) > 1}


def _highlights(facts: Facts, metrics: Mapping[str, Metrics]) -> list[tuple[str, str, str]]:
    """Return (figure, what it is, about what) of the model in service, the few that say most."""
    of_champion = metrics.get(facts["champion"], {})
    found = [
        (_figure(value), METRICS[name], "test images")
        for name in ("image_auroc", "pixel_ap", "pooled_iou", "map_10", "tianchi_score")
        if (value := of_champion.get(name)) is not None
    ][:_NUM_HIGHLIGHTS]
    gates = facts["label_quality"]["gates"].values()
    judged = [each for gate in gates for each in (gate["champion"], gate["challenger"])]
    for figures in [each for each in judged if each["name"] == facts["champion"]][-1:]:
        recall, alarms = figures["planted_recall"], figures["false_alarms"]
        found.append((f"{100 * recall:.1f} %", "planted defects found", f"{figures['num_planted']} on good images"))
        found.append((str(alarms), "false alarms", f"{figures['num_good']} good images, cross-fitted"))
    return found


def _rules(models: Sequence[ReportedModel]) -> dict[str, list[str]]:
    """Return calibration rule -> names of the models that have it."""
    rules: defaultdict[str, list[str]] = defaultdict(list)
    for model in models:
        rules[model.calibration.rule if model.calibration else "Not calibrated."].append(model.name)
    return dict(rules)


def _count_types(images: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the defect types, good first, then by falling number of images."""
    totals: Counter[str] = Counter()
    for counts in images.values():
        totals.update(counts)
    return sorted(totals, key=lambda name: (name != "good", -totals[name], name))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(math.floor(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _data_uri(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
