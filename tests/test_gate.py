import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from ssad_ray.config import RunConfig
from ssad_ray.core.framing import FramePlan
from ssad_ray.core.images import encode_png
from ssad_ray.core.records import Sample
from ssad_ray.methods.artifact import Artifact
from ssad_ray.pipelines import gate
from ssad_ray.pipelines.gate import Decision, GateFigures, PlantedJudge, run_gate
from ssad_ray.pipelines.gate import decide as decide_with_margin
from ssad_ray.pipelines.run import open_run, write_json

NUM_GOOD = 40


def decide(champion: GateFigures, challenger: GateFigures, confidence: float) -> Decision:
    return decide_with_margin(champion, challenger, confidence, precision_margin=0.02)


def figures(alarms: int = 1, found: int = 50, lost_first: bool = False, precision: float = 0.6) -> GateFigures:
    is_found = [True] * found + [False] * (64 - found)
    if lost_first:
        is_found.reverse()
    is_alarm = [True] * alarms + [False] * (NUM_GOOD - alarms)
    return GateFigures(tuple(is_alarm), tuple(is_found), (precision,) * 64)


def test_plants_on_tiles_are_judged_by_the_joined_map_of_the_member_that_did_not_see_the_image(monkeypatch):
    def member(value):
        def maps(images_BHWC):
            one_side = np.zeros(images_BHWC.shape[:3], np.float32)
            one_side[:, :, :16] = value
            return one_side

        return SimpleNamespace(maps=maps)

    plan = FramePlan("tile", 32, 32, 1.0, 0.5)
    artifact = Artifact("a", "draem", plan, None, RunConfig(), {}, (member(1.0), member(2.0)))
    monkeypatch.setattr(gate, "load_artifact", lambda _: artifact)
    judge = PlantedJudge("artifact", {"a": 1, "b": 0}, 12, RunConfig())
    data = encode_png(np.random.default_rng(0).integers(0, 255, (32, 80, 3), np.uint8))
    for name, value in (("a", 2.0), ("b", 1.0)):
        row = judge(Sample(name, name, "part", name), data)
        assert row["score"] == value
        assert len(row["planted_scores"]) == 12
        # At the left end no other tile has a say; elsewhere two tiles disagree on each pixel, and their weights decide.
        assert {round(score, 3) for score in row["planted_scores"]} == {value, round(value * 16 / 17, 3)}


def test_an_image_that_one_of_the_models_cannot_judge_counts_for_none(monkeypatch):
    rows = [SimpleNamespace(sample_id=name, group=name) for name in "abcd"]
    unjudged = {"old": "b", "new": "c"}

    def judged(rows, worker, *_):
        (name,) = worker.args[:1]
        for index, row in enumerate(rows):
            fails = row.sample_id == unjudged[name]
            precision = index + (10 if name == "new" else 0)
            result = {"score": float(index), "planted_scores": [9.0], "planted_precisions": [precision]}
            yield (
                {"sample_id": row.sample_id, "error": "gone"}
                if fails
                else result | {"sample_id": row.sample_id, "error": None}
            )

    monkeypatch.setattr(gate, "stream", judged)
    monkeypatch.setattr(gate, "assign_folds", lambda *_: dict.fromkeys("ab", 0) | dict.fromkeys("cd", 1))
    run = SimpleNamespace(
        rows=lambda _: rows,
        config=RunConfig(),
        model_path=lambda name: name,
        described=lambda _: SimpleNamespace(plan=FramePlan("tile", 32, 32)),
    )
    old, new = gate.measure(run, ("old", "new"), lambda _: None)
    assert old.precisions == (0, 3)
    assert new.precisions == (10, 13)
    assert len(old.is_alarm) == len(new.is_alarm) == 2


@pytest.mark.parametrize(("champion", "becomes"), [("draem-1", "unet-1"), ("unet-2", "unet-2")])
def test_a_decision_of_old_holds_against_the_champion_of_its_time_only(tmp_path, champion, becomes):
    run = open_run(tmp_path, RunConfig())
    stored = {"is_promoted": True, "reason": "promoted, better in precision"}
    write_json(run.gate_path("unet-1"), {"decision": stored, "champion": {"name": "draem-1"}})
    run.promote(champion)
    assert run_gate(run, "unet-1", lambda _: lambda *_: None) == Decision(**stored)
    assert run.champion == becomes


def test_a_challenger_with_better_maps_is_promoted_and_the_reason_says_so():
    decision = decide(figures(), figures(precision=0.7), 0.95)
    assert decision.is_promoted
    assert decision.reason.startswith("promoted, better in precision")
    assert "precision 0.700 (0.600)" in decision.reason


def test_an_equal_challenger_is_refused():
    decision = decide(figures(), figures(), 0.95)
    assert not decision.is_promoted
    assert "no better" in decision.reason


def test_a_lead_that_is_no_more_than_chance_is_refused():
    champion = figures()
    precisions = tuple(0.6 + (0.02 if index < 33 else -0.02) for index in range(64))
    assert not decide(champion, dataclasses.replace(champion, precisions=precisions), 0.95).is_promoted
    assert not decide(figures(alarms=3), figures(alarms=2), 0.95).is_promoted
    assert not decide(figures(found=40), figures(found=43), 0.95).is_promoted


def test_more_false_alarms_than_chance_explains_are_refused_whatever_the_maps():
    decision = decide(figures(alarms=1), figures(alarms=7, precision=0.9), 0.95)
    assert not decision.is_promoted
    assert "worse in false alarms" in decision.reason
    assert "false alarms 7 (1) of 40" in decision.reason


def test_losing_plants_that_the_champion_finds_is_refused():
    decision = decide(figures(found=60), figures(found=40, precision=0.9), 0.95)
    assert not decision.is_promoted
    assert "worse in planted defects found" in decision.reason


def test_worse_maps_are_refused_whatever_else_is_better():
    decision = decide(figures(alarms=9), figures(alarms=0, precision=0.5), 0.95)
    assert not decision.is_promoted
    assert "worse in precision" in decision.reason


def test_losing_as_many_plants_as_are_gained_is_no_reason_to_refuse():
    assert decide(figures(found=40), figures(found=40, lost_first=True, precision=0.7), 0.95).is_promoted


def test_more_plants_found_or_fewer_false_alarms_than_chance_explains_are_better():
    assert decide(figures(found=40), figures(found=60), 0.95).is_promoted
    assert decide(figures(alarms=9), figures(alarms=2), 0.95).is_promoted


def test_a_loss_of_precision_within_the_margin_is_accepted_for_more_plants_found():
    assert decide(figures(found=40), figures(found=60, precision=0.585), 0.95).is_promoted
    assert not decide(figures(found=40), figures(found=60, precision=0.575), 0.95).is_promoted
    assert not decide(figures(found=40), figures(found=40, precision=0.585), 0.95).is_promoted
