import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssad_ray.datasets.manifest import ManifestRow
from ssad_ray.datasets.splits import load_split, save_split, split
from ssad_ray.errors import ConfigError, DataError

PROTOCOLS = ["routine1", "routine1_full_test", "full", "routine2"]


def row(name, defect_type="good", source_stage=None, group=None, category="nut", error=None):
    sample_id = f"{name}@0"
    return ManifestRow(
        sample_id,
        f"/{name}",
        category,
        group or sample_id,
        defect_type=defect_type,
        source_stage=source_stage,
        error=error,
    )


def bottle():
    """The counts of MVTec bottle."""
    counts = {"good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21}
    rows = [row(f"train/good/{i}", "good", "train") for i in range(209)]
    return rows + [row(f"test/{kind}/{i}", kind, "test") for kind, count in counts.items() for i in range(count)]


def tally(rows, stages):
    return Counter((stages[row.sample_id], row.defect_type, row.source_stage) for row in rows)


def test_routine_1_on_the_bottle_is_the_papers_ten_twelve_twelve():
    rows = bottle()
    counts = tally(rows, split(rows, "routine1", 0))
    assert {key: count for key, count in counts.items() if key[0] != "unused"} == {
        ("train", "good", "train"): 10,
        ("online", "good", "test"): 4,
        ("online", "broken_large", "test"): 2,
        ("online", "broken_small", "test"): 2,
        ("online", "contamination", "test"): 4,
        ("test", "broken_large", "test"): 3,
        ("test", "broken_small", "test"): 3,
        ("test", "contamination", "test"): 6,
    }


def test_the_full_test_variant_keeps_train_and_online_and_judges_on_all_other_test_images():
    rows = bottle()
    few, full = split(rows, "routine1", 3), split(rows, "routine1_full_test", 3)
    for stage in ("train", "online"):
        assert {i for i in few if few[i] == stage} == {i for i in full if full[i] == stage}
    assert Counter(full.values())["test"] == 83 - 12
    assert tally(rows, full)["unused", "good", "train"] == 199


def test_full_trains_on_all_shipped_good_and_halves_each_type():
    rows = bottle()
    counts = tally(rows, split(rows, "full", 0))
    assert counts["train", "good", "train"] == 209
    for kind, count in {"good": 20, "broken_large": 20, "broken_small": 22, "contamination": 21}.items():
        assert counts["online", kind, "test"] + counts["test", kind, "test"] == count
        assert abs(counts["online", kind, "test"] - count / 2) <= 0.5


def test_without_shipped_stages_half_of_the_good_train():
    rows = [row(f"g{i}") for i in range(20)] + [row(f"d{i}", "crack") for i in range(10)]
    counts = tally(rows, split(rows, "full", 0))
    assert counts["train", "good", None] == 10
    assert counts["online", "good", None] == counts["test", "good", None] == 5
    assert counts["online", "crack", None] == counts["test", "crack", None] == 5


@pytest.mark.parametrize("defective", [0, 10])
def test_of_data_that_ships_nothing_to_judge_by_half_of_the_good_train(defective):
    rows = [row(f"g{i}", "good", "train") for i in range(20)]
    rows += [row(f"d{i}", "crack", "train") for i in range(defective)] + [row(f"u{i}", None, "test") for i in range(4)]
    has_stream = not defective
    counts = tally(rows, split(rows, "full", 0))
    assert counts["train", "good", "train"] == (20 if has_stream else 10)
    assert counts["test", "good", "train"] == (0 if has_stream else 5)
    assert counts["online", None, "test"] == 4


def test_four_good_images_all_train():
    assert Counter(split([row(f"g{i}") for i in range(4)], "full", 0).values()) == {"train": 4}


def test_good_images_with_an_unlabelled_stream_all_train():
    rows = [row(f"g{i}") for i in range(20)] + [row(f"u{i}", None) for i in range(7)]
    assert Counter(split(rows, "full", 0).values()) == {"train": 20, "online": 7}


def test_many_types_of_one_image_each_reach_both_stages():
    rows = [row(f"g{i}") for i in range(10)] + [row(f"d{i}", f"type{i}") for i in range(9)]
    counts = Counter(stage for name, stage in split(rows, "full", 0).items() if name.startswith("d"))
    assert sorted(counts.values()) == [4, 5]


@pytest.mark.parametrize(
    ("protocol", "num_good", "num_defective", "reason"),
    [
        ("routine1", 9, 30, "needs 10 good images for train; 9 came"),
        ("routine1", 13, 30, "needs 4 good images for online; 13 came, 3 of them free"),
        ("routine1", 20, 19, "needs 12 defective images for test; 19 came, 11 of them free"),
        ("full", 3, 30, "3 good images to train on came, at least 4"),
        ("full", 0, 0, "none of the 0 images can be used"),
    ],
)
def test_too_few_images_say_how_many_came_and_are_needed(protocol, num_good, num_defective, reason):
    rows = [row(f"g{i}") for i in range(num_good)] + [row(f"d{i}", "crack") for i in range(num_defective)]
    with pytest.raises(DataError, match=reason):
        split(rows, protocol, 0)


@pytest.mark.parametrize("protocol", ["full", "routine2"])
def test_templates_train_and_never_judge(protocol):
    boards = [row(f"{i}_test", "open") for i in range(10)]
    templates = [row(f"{i}_temp", source_stage="train") for i in range(10)]
    templates = [replace(each, template_uri=each.uri) for each in templates]
    stages = split(boards + templates, protocol, 0)
    assert {stages[each.sample_id] for each in templates} == {"train"}
    assert Counter(stages[each.sample_id] for each in boards) == {"online": 5, "test": 5}
    photographed = [row(f"{i}_good") for i in range(8)]
    stages = split(boards + templates + photographed, protocol, 0)
    assert {stages[each.sample_id] for each in templates} == {"train"}
    assert Counter(stages[each.sample_id] for each in photographed) == {"train": 4, "online": 2, "test": 2}


def test_too_few_templates_and_nothing_else_are_refused():
    templates = [replace(row(f"{i}_temp"), template_uri=f"/{i}_temp") for i in range(2)]
    with pytest.raises(DataError, match="category nut: 0 good images to train on came, at least 2 are needed"):
        split(templates, "full", 0)


def test_routine_1_draws_its_online_images_from_those_that_are_no_templates():
    boards = [row(f"{i}_test", "open") for i in range(30)]
    templates = [replace(row(f"{i}_temp"), template_uri=f"/{i}_temp") for i in range(30)]
    with pytest.raises(DataError, match="routine 1 needs 4 good images for online"):
        split(boards + templates, "routine1", 0)


def test_an_unknown_protocol_names_the_known_ones():
    with pytest.raises(ConfigError, match="known are routine1, routine1_full_test, full"):
        split([row("a")], "routine3", 0)


def test_broken_rows_are_unused_and_categories_are_split_by_themselves():
    rows = [replace(r, category=c, sample_id=c + r.sample_id, group=c + r.group) for c in "ab" for r in bottle()]
    rows.append(row("bad", error="cut off"))
    stages = split(rows, "routine1", 0)
    assert stages["bad@0"] == "unused"
    for category in "ab":
        assert Counter(stages[r.sample_id] for r in rows if r.category == category)["train"] == 10


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_seed_decides_and_the_order_of_rows_does_not(protocol):
    rows = bottle()
    assert split(rows, protocol, 1) == split(rows[::-1], protocol, 1)
    assert split(rows, protocol, 1) != split(rows, protocol, 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_further_image_moves_at_most_a_few_others(protocol):
    rows = bottle()
    before = split(rows, protocol, 0)
    for kind, stage in (("good", "train"), ("good", "test"), ("contamination", "test")):
        after = split([*rows, row("new", kind, stage)], protocol, 0)
        assert sum(after[name] != before[name] for name in before) <= 2


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "crack", "hole_a", "hole_b", None]),
        st.sampled_from(["train", "test", None]),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=120,
).map(lambda specs: [row(f"{i}", kind, stage, f"group {group}") for i, (kind, stage, group) in enumerate(specs)])


@settings(max_examples=150)
@given(rows=ROWS, protocol=st.sampled_from(PROTOCOLS), seed=st.integers(0, 9))
def test_no_group_is_in_two_stages_and_only_good_images_train(rows, protocol, seed):
    try:
        stages = split(rows, protocol, seed)
    except DataError:
        return
    assert stages.keys() == {row.sample_id for row in rows}
    for group in {row.group for row in rows}:
        assert len({stages[row.sample_id] for row in rows if row.group == group} - {"unused"}) <= 1
    ships_stages = any(row.source_stage == "test" and row.defect_type for row in rows)
    for row_ in rows:
        if stages[row_.sample_id] == "train":
            assert row_.defect_type == "good"
            assert row_.source_stage == "train" or not ships_stages
        if stages[row_.sample_id] == "test":
            assert row_.defect_type is not None


def test_a_pattern_shared_by_good_and_defective_images_still_trains_what_is_needed():
    rows = [row(f"{p}{i}", kind, "train", p) for p in "abcdef" for i, kind in enumerate(["good", "good", "hole"])]
    counts = tally(rows, split(rows, "full", 0))
    assert counts["train", "good", "train"] == 4
    assert counts["unused", "hole", "train"] == 2


def test_a_saved_split_comes_back_and_is_refused_for_other_data(tmp_path):
    rows = bottle()
    stages = split(rows, "full", 5)
    uri = str(tmp_path / "split.json")
    save_split(stages, "/parts", "full", 5, uri)
    assert load_split(uri, rows) == stages
    with pytest.raises(DataError, match="292 samples, 291 of them among the 291 that came"):
        load_split(uri, rows[1:])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": 3, "digest": ""}', '{"stages": {"a": []}, "digest": ""}'])
def test_what_is_no_split_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match="not a split"):
        load_split(str(tmp_path / "split.json"), [])


def test_a_split_changed_by_hand_is_refused(tmp_path):
    uri = tmp_path / "split.json"
    save_split({"a@0": "train"}, "/parts", "full", 0, str(uri))
    content = json.loads(uri.read_text())
    content["stages"]["b@0"] = "test"
    uri.write_text(json.dumps(content))
    with pytest.raises(DataError, match="was changed"):
        load_split(str(uri), [])
