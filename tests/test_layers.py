"""Imports point one way: between the packages, and between the wings of `benchmark`."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmark", "detectors", "leaderboard", "unit_tests_ood")
ALLOWED = {
    "detectors": {"detectors"},
    "benchmark": {"benchmark", "detectors"},
    "unit_tests_ood": {"unit_tests_ood", "benchmark", "detectors"},
    "leaderboard": {
        "leaderboard",
        "benchmark.errors",
        "benchmark.files",
        "benchmark.records",
        "benchmark.results",
        "benchmark.run_records",
        "benchmark.metrics",
        "benchmark.scores",
        "benchmark.hub",
    },
    # Where all comes together: the cases of the suite and those of the unit tests.
    "benchmark.api": {"benchmark", "detectors", "unit_tests_ood"},
    "benchmark.plugin": {"benchmark", "detectors", "unit_tests_ood"},
}
TOGETHER = ("benchmark.api", "benchmark.plugin")
# The wings of `benchmark`, from the ground up: a module imports from its own wing and from those before it. A module
# outside of the wings is one of its own.
WINGS = (
    "packages",
    "errors",
    "files",
    "public",
    "memory",
    "arrays",
    "tables",
    "entries",
    "records",
    "results",
    "run_records",
    "metrics",
    "scores",
    "hub",
    "comparing",
    "images",
    "models",
    "suites",
    "limits",
    "running",
    "user",
    "api",
    "gate",
    "training",
    "variants",
    "test_ood_detection",
    "test_detector_contract",
    "plugin",
    "commands",
    "__main__",
)


def imported(source: str) -> set[str]:
    """The modules and names that some code imports, `from a import b` counting as a.b too where a is a package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module in PACKAGES else {node.module}
            )
    return {name for name in names if name.split(".")[0] in PACKAGES}


def forbidden(package: str, source: str) -> set[str]:
    """What a module of a package imports and must not. package: `benchmark.plugin` for the plugin's own modules."""
    allowed = ALLOWED[package]
    return {name for name in imported(source) if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)}


def upward(wing: str, source: str) -> set[str]:
    """What a module of a wing imports from a wing that stands above it."""
    own = WINGS.index(wing)
    parts = [name.split(".") for name in imported(source) if name.startswith("benchmark.")]
    return {".".join(name) for name in parts if WINGS.index(name[1]) > own}


def modules() -> dict[str, Path]:
    files = {file: file.relative_to(ROOT).with_suffix("").parts for file in (ROOT / "benchmark").rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): file for file, parts in files.items()}


def circles(imports: dict[str, set[str]]) -> Iterator[str]:
    """The modules that import themselves, by way of others."""
    for start in imports:
        met, ahead = set(), list(imports[start])
        while ahead:
            if (name := ahead.pop()) not in met:
                met.add(name)
                ahead += imports.get(name, ())
        if start in met:
            yield start


def imports_among(files: dict[str, str]) -> dict[str, set[str]]:
    """What modules import of each other; files: their source by name."""
    found: dict[str, set[str]] = {}
    for module, source in files.items():
        named = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        found[module] = (named & files.keys()) - {module}
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        of = next((name for name in TOGETHER if file.is_relative_to(ROOT / name.replace(".", "/"))), package)
        assert not forbidden(of, file.read_text()), file


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("detectors", "from benchmark.metrics import auroc"),
        ("benchmark", "import unit_tests_ood"),
        ("leaderboard", "from benchmark.running.store import Store"),
        ("leaderboard", "from benchmark import running"),
        ("leaderboard", "import detectors"),
        ("benchmark.plugin", "import leaderboard"),
    ],
)
def test_an_import_the_other_way_is_seen(package: str, source: str) -> None:
    assert forbidden(package, source)


def test_wings_import_from_those_below_them() -> None:
    for module, file in modules().items():
        if module != "benchmark":
            assert not upward(module.split(".")[1], file.read_text()), module


@pytest.mark.parametrize(
    ("wing", "source"),
    [
        ("images", "from benchmark.models.model import Model"),
        ("suites", "def f():\n    from benchmark.running.session import Session"),
        ("records", "from benchmark import metrics"),
        ("running", "import benchmark.plugin"),
    ],
)
def test_an_import_from_a_wing_above_is_seen(wing: str, source: str) -> None:
    assert upward(wing, source)


def test_no_module_imports_itself_by_way_of_others() -> None:
    # The package itself names what it gives to users, and loads none of it before somebody asks.
    assert not [*circles(imports_among({n: f.read_text() for n, f in modules().items() if n != "benchmark"}))]


def test_a_circle_is_seen() -> None:
    files = {
        "benchmark.images.a": "from benchmark.images import b",
        "benchmark.images.b": "def f():\n    from benchmark.images.c import C",
        "benchmark.images.c": "import benchmark.images.a",
        "benchmark.images.d": "import benchmark.images.a",
    }
    assert sorted(circles(imports_among(files))) == ["benchmark.images.a", "benchmark.images.b", "benchmark.images.c"]


def test_the_checkout_only_loads_the_plugin() -> None:
    assert (ROOT / "conftest.py").read_text() == 'pytest_plugins = ["benchmark.plugin"]\n'


@pytest.mark.parametrize(
    "module",
    [
        "benchmark",
        "benchmark.records",
        "benchmark.results",
        "benchmark.run_records",
        "benchmark.api.loading",
        "benchmark.metrics",
        "leaderboard.__main__",
        "benchmark.commands.app",
        "benchmark.images.image_set",
        "benchmark.models.entries",
        "benchmark.plugin",
        "benchmark.user.messages",
        "unit_tests_ood.__main__",
    ],
)
def test_what_needs_neither_torch_nor_timm_does_not_load_them(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'timm', 'datasets'}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
