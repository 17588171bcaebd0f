from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from ssad_ray import errors
from ssad_ray.config import RunConfig, dump_config, load_config, validate_config, with_override
from ssad_ray.errors import ArtifactError, ConfigError, DataError, InspectionError, UnavailableError

NAMES = st.text("abcdef_", min_size=1, max_size=4)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(".".join)
TREES = st.recursive(st.integers(), lambda below: st.dictionaries(NAMES, below, max_size=3), max_leaves=8)
ERRORS = (InspectionError, ConfigError, DataError, ArtifactError, UnavailableError)


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [field.annotation for field in model.model_fields.values()]
    inner = [each for each in below if isinstance(each, type) and issubclass(each, BaseModel)]
    return [model, *(section for each in inner for section in sections(each))]


def value_at(tree: object, dotted: str) -> object:
    for name in dotted.split("."):
        assert isinstance(tree, dict)
        tree = tree[name]
    return tree


def fail(kind: type[InspectionError], detail: str) -> None:
    raise kind(detail)


@given(st.dictionaries(NAMES, TREES, max_size=4), PATHS, st.integers())
def test_an_override_sets_its_value_and_nothing_else(tree: dict[str, object], dotted: str, value: int) -> None:
    before = repr(tree)
    changed = with_override(tree, dotted, value)
    assert value_at(changed, dotted) == value
    assert repr(tree) == before
    head = dotted.split(".")[0]
    assert {name: each for name, each in changed.items() if name != head} == {
        name: each for name, each in tree.items() if name != head
    }


def test_a_method_keeps_its_own_defaults_beside_an_override() -> None:
    own = RunConfig().detector.context_svdd.training
    changed = load_config(None, ["detector.context_svdd.training.steps=5"]).detector.context_svdd.training
    assert changed == own.model_copy(update={"steps": 5})
    assert own.learning_rate != RunConfig().detector.draem.training.learning_rate


@given(st.dictionaries(NAMES, TREES, max_size=4), PATHS, st.integers(), st.integers())
def test_the_last_of_two_overrides_holds(tree: dict[str, object], dotted: str, first: int, last: int) -> None:
    once = with_override(tree, dotted, last)
    assert with_override(with_override(tree, dotted, first), dotted, last) == once


def test_neighbours_of_an_overridden_field_keep_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("detector:\n  draem:\n    width: 8\n    training: {steps: 5, shards: 4}\n")
    config = load_config(path, ["detector.draem.training.steps=7"])
    assert config.detector.draem.training.steps == 7
    assert config.detector.draem.training.shards == 4
    assert config.detector.draem.width == 8
    assert config.detector.autoencoder == RunConfig().detector.autoencoder


def test_overrides_come_after_the_file_and_the_file_after_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\nrounds: 2\n")
    config = load_config(path, ["seed=3", "seed=4"])
    assert (config.seed, config.rounds, config.gate) == (4, 2, RunConfig().gate)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing is changed\n")
    assert load_config(path) == load_config() == RunConfig()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("detector.draem.training.learning_rate=1e-3", 1e-3),
        ("data.category=bottle", "bottle"),
        ("data.category=a=b", "a=b"),
        ("data.category=", None),
        ("data.category=null", None),
        ("resources.use_gpu=false", False),
        ("input.scale=1", 1.0),
    ],
)
def test_override_values_are_read_as_yaml(override: str, value: object) -> None:
    assert value_at(load_config(None, [override]).model_dump(), override.partition("=")[0]) == value


@pytest.mark.parametrize("override", ["seed", "=3", ""])
def test_an_override_without_name_or_value_is_refused_with_an_example(override: str) -> None:
    with pytest.raises(ConfigError, match=r"dotted\.path=value, for example seed=1; got " + repr(override)):
        load_config(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", r"sead: extra inputs are not permitted \(got 1\)"),
        ("detector.draem.widht=8", r"detector\.draem\.widht: extra inputs are not permitted \(got 8\)"),
        ("seed=-1", r"seed: input should be greater than or equal to 0 \(got -1\)"),
        ("seed=half", r"seed: input should be a valid integer.* \(got 'half'\)"),
        ("rounds=0", r"rounds: .*greater than or equal to 1 \(got 0\)"),
        ("input.size_px=31", r"input\.size_px: .*greater than or equal to 32 \(got 31\)"),
        ("input.mode=zoom", r"input\.mode: .*'auto', 'resize' or 'tile' \(got 'zoom'\)"),
        ("calibration.false_alarm_level=0", r"calibration\.false_alarm_level: .*greater than 0 \(got 0\)"),
        ("calibration.false_alarm_level=1", r"calibration\.false_alarm_level: .*less than 1 \(got 1\)"),
        ("detector.draem.training.batch_size=7", r"batch_size 7 is not a multiple of shards 2"),
        ("data.max_error_fraction=.nan", r"data\.max_error_fraction: .* \(got nan\)"),
        ("detector=draem", r"detector: input should be a valid dictionary.* \(got 'draem'\)"),
    ],
)
def test_a_wrong_field_is_named_with_what_came_and_what_is_accepted(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        validate_config({"seed": -1, "sead": 1, "gate": {"confidence": 2}})
    lines = refused.value.detail.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["seed", "gate.confidence", "sead"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- seed", "holds a list; a mapping of sections is needed"),
        ("seed: [1", "cannot read the config"),
        ("seed: !!python/object/apply:os.getcwd []", "cannot read the config"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(path)
    assert str(path) in refused.value.detail


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_a_dumped_config_reads_back_as_it_was(tmp_path: Path) -> None:
    overrides = ["seed=7", "input.scale=0.5", "data.category=Füße 1", "resources.use_gpu=true", "input.overlap=0.1"]
    config = load_config(None, overrides)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


def test_a_dumped_config_is_complete_and_in_the_order_of_the_sections() -> None:
    tree = yaml.safe_load(dump_config(RunConfig()))
    assert list(tree) == list(RunConfig.model_fields)
    assert tree == RunConfig().model_dump(mode="json")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]


def test_every_section_refuses_unknown_fields_and_change() -> None:
    for section in sections(RunConfig):
        assert section.model_config["extra"] == "forbid", section
        assert section.model_config["frozen"], section


def test_every_field_is_described_and_every_number_has_a_lower_bound() -> None:
    undescribed, unbounded = [], []
    for section in sections(RunConfig):
        schema = section.model_json_schema()["properties"]
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                continue
            where = f"{section.__name__}.{name}"
            undescribed += [where] if not field.description else []
            kinds = schema[name].get("anyOf", [schema[name]])
            numbers = [kind for kind in kinds if kind.get("type") in ("integer", "number")]
            unbounded += [where for kind in numbers if not {"minimum", "exclusiveMinimum"} & kind.keys()]
    assert (undescribed, unbounded) == ([], [])


def test_the_defaults_lie_within_their_own_bounds() -> None:
    assert validate_config(RunConfig().model_dump()) == RunConfig()


def test_errors_raised_in_another_process_arrive_whole() -> None:
    detail = "Größe 3 × 4 was refused"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind in ERRORS:
            error = pool.submit(fail, kind, detail).exception()
            assert type(error) is kind
            assert error.detail == str(error) == detail
            assert error.args == (detail,)


@pytest.mark.parametrize("arguments", [(), ("what", "where")])
def test_an_error_takes_exactly_one_string(arguments: tuple[str, ...]) -> None:
    for kind in ERRORS:
        with pytest.raises(TypeError):
            kind(*arguments)


def test_every_kind_of_error_ends_the_command_with_a_code_of_its_own() -> None:
    defined = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert defined == set(ERRORS)
    assert [kind.exit_code for kind in ERRORS] == [1, 2, 3, 4, 5]
    assert all(issubclass(kind, InspectionError) for kind in ERRORS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[", "not YAML"),
        ("seed.=3", r"dotted\.path=value"),
        ("detector.draem.training.shards=3", "multiple of shards 3"),
        ("segmenter.planted_fraction=0.7", "more than 1 together"),
        ("calibration.pixel_fpr_high=0.5", "not below pixel_fpr_low"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_any_work(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def test_a_config_file_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes("seed: 1 # Prüfung".encode("utf-16"))
    with pytest.raises(ConfigError, match="cannot read the config"):
        load_config(tmp_path / "config.yaml")
