"""Challenger against champion, judged without ground truth.

Two questions, both asked of good images that the answering ensemble member never saw: how often does it raise a
false alarm, and does it find defects planted by families that no training uses? Champion and challenger judge the
very same plants. `decide` is a pure function of the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from ssad_ray.config import RunConfig
from ssad_ray.core.calibration import conformal_threshold
from ssad_ray.core.framing import FramePlan, Frames
from ssad_ray.core.images import decode
from ssad_ray.core.metrics.intervals import binomial_interval
from ssad_ray.core.metrics.ranking import rank_scores
from ssad_ray.core.profile import HeldOutProfiles
from ssad_ray.core.records import Sample
from ssad_ray.core.rng import generator
from ssad_ray.core.synthesis.families import plant
from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.methods.artifact import load_artifact
from ssad_ray.methods.batches import HELD_OUT_FAMILIES, body
from ssad_ray.pipelines.folds import assign_folds, refuse_one_fold
from ssad_ray.pipelines.run import Announce, Run, read_json, timed, write_json
from ssad_ray.pipelines.stream import Row, stream

_PER_PLANT = pa.list_(pa.float64())
_SCHEMA = pa.schema(
    [
        ("score", pa.float64()),
        ("map", pa.binary()),
        ("planted_scores", _PER_PLANT),
        ("planted_maps", pa.binary()),
        ("planted_precisions", _PER_PLANT),
    ]
)


@dataclass(frozen=True, slots=True)
class GateFigures:
    """What a model does on good images, as they are and with planted defects.

    Attributes:
        is_alarm: Per good image, whether it was judged anomalous, with a threshold from the other folds.
        is_found: Per plant, whether its image was judged anomalous.
        precisions: Per plant, pixel-level average precision of the map against the plant.
    """

    is_alarm: tuple[bool, ...]
    is_found: tuple[bool, ...]
    precisions: tuple[float, ...]

    @property
    def false_alarms(self) -> int:
        """Number of good images that were judged anomalous."""
        return sum(self.is_alarm)

    @property
    def recall(self) -> float:
        """Share of plants that were found."""
        return float(np.mean(self.is_found))

    @property
    def precision(self) -> float:
        """Mean pixel-level average precision of the plants."""
        return float(np.mean(self.precisions))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the challenger goes into service, and why."""

    is_promoted: bool
    reason: str


@timed("gate")
def run_gate(run: Run, challenger: str, announce: Announce) -> Decision:
    """Judge a challenger against the champion and promote it if it is better; the outcome is kept and not redone."""
    path = run.gate_path(challenger)
    if path.exists():
        stored = read_json(path)
        decision, champion = Decision(**stored["decision"]), stored["champion"]["name"]
    else:
        champion = run.champion
        old, new = measure(run, (champion, challenger), announce)
        confidence = run.config.gate.confidence
        decision = decide(old, new, confidence, run.config.gate.precision_margin)
        figures = {
            "champion": _described(champion, old, confidence),
            "challenger": _described(challenger, new, confidence),
        }
        write_json(path, {"decision": asdict(decision), **figures})
    if decision.is_promoted and run.champion == champion:  # of a decision of old the champion may be a later one
        run.promote(challenger)
    return decision


def decide(champion: GateFigures, challenger: GateFigures, confidence: float, precision_margin: float) -> Decision:
    """Promote a challenger that is significantly better somewhere and significantly worse nowhere.

    Compared are, image by image, the false alarms and, plant by plant, which are found (exact McNemar tests) and the
    precision of the maps (Wilcoxon's signed ranks). Precision is worse only where it falls by more than the margin.
    """
    alarms = np.subtract(champion.is_alarm, challenger.is_alarm, dtype=float)
    found = np.subtract(challenger.is_found, champion.is_found, dtype=float)
    precision = np.subtract(challenger.precisions, champion.precisions)
    p_values = {  # of being worse, of being better
        "false alarms": (_sign_test(-alarms), _sign_test(alarms)),
        "planted defects found": (_sign_test(-found), _sign_test(found)),
        "precision on them": (_signed_ranks(-precision - precision_margin), _signed_ranks(precision)),
    }
    worse = [name for name, (p_value, _) in p_values.items() if p_value < 1.0 - confidence]
    better = [name for name, (_, p_value) in p_values.items() if p_value < 1.0 - confidence]
    outcome = f"refused, worse in {', '.join(worse)}" if worse else "refused, no better"
    if better and not worse:
        outcome = f"promoted, better in {', '.join(better)}"
    return Decision(
        bool(better and not worse),
        f"{outcome}: planted defects found {challenger.recall:.3f} (champion {champion.recall:.3f}), their precision "
        f"{challenger.precision:.3f} ({champion.precision:.3f}), false alarms {challenger.false_alarms} "
        f"({champion.false_alarms}) of {len(challenger.is_alarm)}",
    )


def _sign_test(lead: NDArray[np.float64]) -> float:
    """Return the p-value of as many wins among what differs; the exact McNemar test of two paired yes-or-no answers."""
    wins, differing = int((lead > 0).sum()), int((lead != 0).sum())
    return float(stats.binomtest(wins, differing, alternative="greater").pvalue) if differing else 1.0


def _signed_ranks(lead: NDArray[np.float64]) -> float:
    return float(stats.wilcoxon(lead, alternative="greater").pvalue) if lead.any() else 1.0


def measure(run: Run, names: Sequence[str], announce: Announce) -> list[GateFigures]:
    """Judge good images, as they are and with planted defects, each by the member that did not see it.

    An image that one of the models cannot judge counts for none, so that figures can be compared one by one.
    """
    rows, config = run.rows("train"), run.config
    folds, num_plants = assign_folds(rows, config), -(-config.gate.num_planted // len(rows))
    judged = []
    for name in names:
        worker = partial(PlantedJudge, run.model_path(name), folds, num_plants, config)
        results = stream(rows, worker, _SCHEMA, config, announce(f"{name}: gate"))
        judged.append({row["sample_id"]: row for row in results if row["error"] is None})
    by_all = [row for row in rows if all(row.sample_id in results for results in judged)]
    refuse_one_fold((row.sample_id for row in by_all), folds)
    return [
        _figures([results[row.sample_id] for row in by_all], run.described(name).plan, by_all, folds, config)
        for name, results in zip(names, judged, strict=True)
    ]


def _figures(
    results: Sequence[Row], plan: FramePlan, rows: Sequence[ManifestRow], folds: Mapping[str, int], config: RunConfig
) -> GateFigures:
    if plan.mode == "resize":
        _score_by_place(results, plan, rows)
    scores = np.array([row["score"] for row in results])
    fold = np.array([folds[row.sample_id] for row in rows])
    thresholds = _thresholds(scores, fold, config.calibration.false_alarm_level)
    found = [score > at for row, at in zip(results, thresholds, strict=True) for score in row["planted_scores"]]
    precisions = [precision for row in results for precision in row["planted_precisions"]]
    return GateFigures(tuple((scores > thresholds).tolist()), tuple(bool(each) for each in found), tuple(precisions))


class PlantedJudge:
    """The worker: scores a good image as it is and with planted defects, by the member that did not see it."""

    def __init__(self, artifact_path: Path, folds: Mapping[str, int], num_plants: int, config: RunConfig) -> None:
        self.artifact, self.config = load_artifact(artifact_path), config
        self.folds, self.num_plants = folds, num_plants

    def __call__(self, sample: Sample, data: bytes) -> Row:
        """Return the clean score, score and precision of every plant, and, where frames have places, the maps."""
        image = decode(data, self.config.data.max_image_px)
        fold = self.folds[sample.sample_id]
        frames = Frames(self.artifact.shown(image, sample, self.config.data), self.artifact.plan)
        clean_score, clean_map = self.artifact.score_joined(frames, fold)
        plants = [self._plant(frames, sample.sample_id, index) for index in range(self.num_plants)]
        rankings = [rank_scores(each.ravel(), mask.ravel()) for each, mask in plants]
        has_places = self.artifact.plan.mode == "resize"
        return {
            "score": clean_score,
            "map": clean_map.tobytes() if has_places else None,
            "planted_maps": np.stack([each for each, _ in plants]).tobytes() if has_places else None,
            "planted_scores": [float(each.max()) for each, _ in plants],
            "planted_precisions": [ranking.average_precision if ranking else 0.0 for ranking in rankings],
        }

    def _plant(self, frames: Frames, sample_id: str, index: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Plant a defect on one frame; return what the image's map is there, and where the defect is, both (h, w)."""
        rng = generator(self.config.seed, "gate", sample_id, index)
        at = int(rng.integers(len(frames)))
        planted, mask = plant(frames[at], rng, HELD_OUT_FAMILIES)
        near, place = frames.with_frame(at, planted)
        _, joined_map = self.artifact.score_joined(near, self.folds[sample_id])
        return joined_map[place], body(mask)


def _score_by_place(results: Sequence[Row], plan: FramePlan, rows: Sequence[ManifestRow]) -> None:
    """Replace scores by the excess over a profile that neither the image nor a near duplicate had a part in."""
    groups = [row.group for row in rows]
    shape = (-1, plan.height, plan.width)
    maps = np.concatenate([np.frombuffer(row["map"], np.float32).reshape(shape) for row in results])
    profiles = HeldOutProfiles(maps, groups)
    for row, group, clean in zip(results, groups, maps, strict=True):
        profile = profiles.without(group)
        row["score"] = float(profile.excess(clean).max())
        planted = np.frombuffer(row["planted_maps"], np.float32).reshape(shape)
        row["planted_scores"] = profile.excess(planted).max(axis=(1, 2)).tolist()


def _thresholds(scores: NDArray[np.float64], fold: NDArray[np.int64], level: float) -> NDArray[np.float64]:
    """Return for every image the threshold learnt from the images of all other folds."""
    of_fold = {each: conformal_threshold(scores[fold != each].tolist(), level)[0] for each in np.unique(fold)}
    return np.array([of_fold[each] for each in fold])


def _described(name: str, figures: GateFigures, confidence: float) -> dict[str, object]:
    num_good = len(figures.is_alarm)
    return {
        "name": name,
        "num_good": num_good,
        "false_alarms": figures.false_alarms,
        "false_alarm_bound": binomial_interval(figures.false_alarms, num_good, confidence)[1],
        "num_planted": len(figures.is_found),
        "planted_recall": figures.recall,
        "planted_precision": figures.precision,
    }
