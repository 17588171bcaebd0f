"""The shape of the package: what may import what, and that nothing happens at import."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"", "errors", "config", "method_config"},
    {"core"},
    {"methods", "datasets", "labels"},
    {"pipelines"},
    {"service"},
    {"cli"},
)
TORCH_FREE = ("core", "datasets", "labels")
RAY_FOLDERS = ("ssad_ray/pipelines", "ssad_ray/service", "serve", "jobs")
HTTP_PACKAGES = {"fastapi", "starlette", "uvicorn"}
HEAVY = {"torch", "torchvision", "ray", "cv2", "numpy", "scipy", "pyarrow", "pandas", "PIL", *HTTP_PACKAGES}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.save", "pd.read_pickle", "os.system"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
}
MAX_LINES = 350

SOURCES = sorted((ROOT / "ssad_ray").rglob("*.py"))
SCRIPTS = sorted(path for folder in ("jobs", "serve") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in SOURCES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything imported below a node, wherever it stands."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from ((each.lineno, alias.name) for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert not each.level, "imports are absolute"
            for alias in each.names:
                whole = f"{each.module}.{alias.name}"
                yield each.lineno, whole if whole in MODULES else str(each.module)


def statements_at_import(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported; what only type checkers see does not."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING":
            continue
        if isinstance(each, ast.stmt):
            yield each
        if not isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements_at_import(each)


def imports_at_import(path: Path) -> set[str]:
    found = (each for each in statements_at_import(tree(path)) if isinstance(each, ast.Import | ast.ImportFrom))
    return {name for each in found for _, name in imports(each)}


def internal_imports(path: Path) -> Iterator[tuple[int, str]]:
    return ((line, name) for line, name in imports(tree(path)) if name.partition(".")[0] == "ssad_ray")


def area(module: str) -> str:
    """Return the folder or file right below the package that a module is in."""
    return module.partition(".")[2].partition(".")[0]


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if area(module) in names)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def importers(packages: Iterable[str], paths: Iterable[Path]) -> list[str]:
    """Return the places below `paths` that import one of the packages."""
    prefixes = tuple(f"{package}." for package in packages)
    return [where(p, line) for p in paths for line, name in imports(tree(p)) if f"{name}.".startswith(prefixes)]


def run_python(code: str, folder: Path) -> str:
    """Run code in an empty folder that is also its home, and return what it printed."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_module_stands_on_a_floor() -> None:
    assert {area(module) for module in MODULES} <= set.union(*FLOORS)


def test_imports_point_down() -> None:
    upward = [
        f"{where(path, line)} imports {name}"
        for module, path in MODULES.items()
        for line, name in internal_imports(path)
        if area(name) != area(module) and not (floor(name) < floor(module) or floor(module) == 0)
    ]
    assert upward == []


def test_errors_and_config_import_nothing_of_the_package_but_each_other() -> None:
    below_all = {module: path for module, path in MODULES.items() if floor(module) == 0}
    assert {name for path in below_all.values() for _, name in internal_imports(path)} <= below_all.keys()


def test_no_imports_run_in_circles() -> None:
    graph = {module: {name for _, name in internal_imports(path)} for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) >= graph.keys()


def test_only_pipelines_service_and_scripts_import_ray() -> None:
    allowed = tuple(ROOT / folder for folder in RAY_FOLDERS)
    others = [path for path in SOURCES if not any(path.is_relative_to(folder) for folder in allowed)]
    assert importers(["ray"], others) == []


def test_only_the_service_knows_http() -> None:
    others = [path for module, path in MODULES.items() if area(module) != "service"]
    assert importers(HTTP_PACKAGES | {"ray.serve"}, others) == []


def test_core_datasets_and_labels_do_without_torch() -> None:
    paths = [path for module, path in MODULES.items() if area(module) in TORCH_FREE]
    assert importers(["torch", "torchvision"], paths) == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_torch_and_ray_are_not_even_imported_indirectly(name: str, tmp_path: Path) -> None:
    modules = [module for module in MODULES if area(module) == name]
    assert len(modules) > 1
    code = f"import importlib, sys\nfor each in {modules}: importlib.import_module(each)\nprint(*sys.modules)"
    assert {"torch", "ray"}.isdisjoint(run_python(code, tmp_path).split())


def test_imports_stand_on_top_except_in_the_method_table_and_the_command_line() -> None:
    late = [
        where(path, line)
        for module, path in MODULES.items()
        if module not in ("ssad_ray.cli", "ssad_ray.methods")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for line, _ in imports(node)
    ]
    assert late == []


def test_packages_do_not_re_export_their_modules() -> None:
    packages = [(module, path) for module, path in MODULES.items() if path.name == "__init__.py"]
    re_exports = [
        f"{module} imports {name}"
        for module, path in packages
        for name in imports_at_import(path)
        if name.startswith(f"{module}.")
    ]
    assert re_exports == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [module for module in MODULES if drawers & set(module.split("."))] == []


def test_files_read_from_top_to_bottom_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in [*SOURCES, *SCRIPTS, *(ROOT / "tests").glob("*.py")]
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def test_nothing_stored_can_run_code_when_it_is_loaded() -> None:
    paths = [*SOURCES, *SCRIPTS]
    unsafe = importers(UNSAFE_MODULES, paths)
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
                unsafe.append(where(path, node.lineno))
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell", "unsafe_load"):
                unsafe.append(where(path, node.lineno))
    assert unsafe == []


NOTICE_EFFECTS = """
import importlib, json, logging, os, sys, threading
from contextlib import suppress

def loggers():
    named = (each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger))
    return {each.name: [each.level, len(each.handlers)] for each in (logging.root, *named)}

def surroundings():
    return {"environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path), "loggers": loggers(),
            "threads": [each.name for each in threading.enumerate()]}

for name in FOREIGN:  # what others do when they are imported is theirs
    with suppress(ModuleNotFoundError):
        importlib.import_module(name)
before = surroundings()
for name in MODULES:
    importlib.import_module(name)
after = surroundings()
own = {name: value for name, value in after["loggers"].items() if name.partition(".")[0] == "ssad_ray"}
after["loggers"] = {name: after["loggers"].get(name) for name in before["loggers"]}
import ray
print(json.dumps({"before": before, "after": after, "own_loggers": own, "is_ray_up": ray.is_initialized()}))
"""


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    foreign = {name for path in SOURCES for _, name in imports(tree(path)) if name.partition(".")[0] != "ssad_ray"}
    effects = NOTICE_EFFECTS.replace("FOREIGN", repr(sorted(foreign))).replace("MODULES", repr(sorted(MODULES)))
    seen = json.loads(run_python(effects, tmp_path))
    assert seen["after"] == seen["before"]
    assert [name for name, state in seen["own_loggers"].items() if state != [0, 0]] == []
    assert not seen["is_ray_up"]
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("verb", ["", "demo", "loop"])
def test_help_needs_nothing_heavy(verb: str, tmp_path: Path) -> None:
    code = f"""
import sys
from ssad_ray.cli import app
try:
    app({[*verb.split(), "--help"]})
except SystemExit as done:
    assert not done.code
print("MODULES", *{{name.partition(".")[0] for name in sys.modules}})
"""
    text, _, loaded = run_python(code, tmp_path).partition("MODULES")
    assert "Usage: " in text
    assert HEAVY.isdisjoint(loaded.split())
