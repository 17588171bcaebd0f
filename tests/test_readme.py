"""What README.md and docs/ say exists: commands, options, files, fields, dependencies."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import typer.main
import yaml

from ssad_ray import __version__
from ssad_ray.cli import app
from ssad_ray.config import load_config
from ssad_ray.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()

CODE_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
FILE_NAME = re.compile(r"`([\w.-]+(?:/[\w.-]+)*(?:\.(?:py|md|toml|lock|ya?ml)|/))`")
NAMED_DOCUMENT = re.compile(r"\bdocs/[\w./-]+\.md\b")
OF_A_RUN_OR_A_PERSON = ("RUN/", "parts/", "report.", "_lineage.", "artifact.", "config.", "weights.", "uv.lock")

SEPARATORS = {";", "&", "&&", "|", "do", "time"}

COMMAND_GROUP = typer.main.get_command(app)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    found = CODE_BLOCK.findall(page.read_text(encoding="utf-8"))
    return (code for language, code in found if language in languages)


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every simple command, shell variables replaced by a number."""
    for block in blocks(page, "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(re.sub(r"\$\w+", "0", line), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = [";" if word in SEPARATORS else word for word in lexer]
            commands = (list(group) for is_command, group in groupby(words, ";".__ne__) if is_command)
            yield from commands


def commands_of(page: Path, program: str) -> list[list[str]]:
    return [words for words in shell_commands(page) if words[0] == program]


def parse(words: list[str]) -> None:
    """Parse an `ssad` command as typer would, and the config fields it sets; nothing is run."""
    group = COMMAND_GROUP.make_context("ssad", words[1:])
    name, command, rest = COMMAND_GROUP.resolve_command(group, [*group._protected_args, *group.args])
    options = command.make_context(name, rest, parent=group).params
    load_config(None, options.get("set_") or ())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_ssad_command_parses(page: Path) -> None:
    for words in commands_of(page, "ssad"):
        parse(words)


def test_the_readme_shows_every_verb_of_a_users_first_day() -> None:
    shown = {words[1] for words in commands_of(ROOT / "README.md", "ssad")}
    assert shown >= {"catalog", "fit", "label", "train", "evaluate", "loop"}


@pytest.mark.parametrize(
    "line", ["ssad dance", "ssad loop --out x --sead 1", "ssad loop", "ssad fit --out x --set detector.draem.widht=8"]
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"dance|sead|Missing|widht"):
        parse(line.split())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {words[1] for words in commands_of(page, "make")} | set(re.findall(r"`make (\w+)`", text))
    assert named <= set(re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_file_that_is_named_exists(page: Path) -> None:
    names = FILE_NAME.findall(page.read_text(encoding="utf-8"))
    ours = [name for name in names if not name.startswith(OF_A_RUN_OR_A_PERSON)]
    roots = (ROOT, ROOT / "ssad_ray", page.parent)
    assert [name for name in ours if not any((root / name).exists() for root in roots)] == []


def test_every_document_that_the_code_names_exists() -> None:
    sources = [*(ROOT / "ssad_ray").rglob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    named = {name for path in sources for name in NAMED_DOCUMENT.findall(path.read_text(encoding="utf-8"))}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_design_names_every_method() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"`{name}`" not in design] == []


def test_every_dependency_has_its_reason_and_no_reason_is_left_over() -> None:
    table = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    assert set(re.findall(r"`(.*?)`", first_cells)) == {re.split(r"[<>=]", each)[0] for each in wanted}


def test_decisions_are_numbered_without_gaps_and_say_what_they_cost() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings[0].startswith(path.name[:4]), path.name
        assert headings[1:] == ["Context", "Decision", "Consequences", "Ruled out"], path.name


def test_yaml_files_parse() -> None:
    files = [
        *ROOT.glob("*.y*ml"),
        *(p for name in ("serve", "docs", "jobs", "tests") for p in (ROOT / name).rglob("*.y*ml")),
    ]
    for path in files:
        assert list(yaml.safe_load_all(path.read_text(encoding="utf-8"))), path
    for page in PAGES:
        assert all(yaml.safe_load(block) for block in blocks(page, "yaml"))


def test_python_in_the_pages_compiles() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block, page.name)


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == __version__
    versions = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1:] == [] or versions[1] == __version__


def test_the_lock_names_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", lock)
    requirements = re.findall(r"^[\w.-]+(?:\[.*?\])?==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert len(requirements) > len(PROJECT["project"]["dependencies"])
    assert all("--hash=sha256:" in each for each in requirements)


def test_the_makefile_locks_with_the_command_that_made_the_lock() -> None:
    header = (ROOT / "requirements.lock").read_text().splitlines()[1]
    recipe = MAKEFILE.replace("\\\n", " ").replace("--quiet ", "")
    assert (
        header.removeprefix("#").split() == re.search(r"^lock:.*\n\t\$\(BIN\)/(.*)$", recipe, re.MULTILINE)[1].split()
    )
