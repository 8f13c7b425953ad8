"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmark", "detectors", "leaderboard", "unit_tests_ood")
ALLOWED = {
    "detectors": {"detectors"},
    "benchmark": {"benchmark", "detectors"},
    "unit_tests_ood": {"unit_tests_ood", "benchmark", "detectors"},
    "leaderboard": {"leaderboard", "benchmark.records", "benchmark.metrics"},
}


def imported(source: str) -> set[str]:
    """The modules that some code imports, `from a import b` counting as a.b too where a is a package."""
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
    allowed = ALLOWED[package]
    return {name for name in imported(source) if not any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not forbidden(package, file.read_text()), file


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("detectors", "from benchmark.metrics import auroc"),
        ("benchmark", "import unit_tests_ood"),
        ("leaderboard", "from benchmark.running.store import Store"),
        ("leaderboard", "from benchmark import evaluation"),
        ("leaderboard", "import detectors"),
    ],
)
def test_an_import_the_other_way_is_seen(package: str, source: str) -> None:
    assert forbidden(package, source)


def test_records_and_metrics_need_neither_torch_nor_timm() -> None:
    code = (
        "import sys, benchmark.records, benchmark.metrics, leaderboard.__main__\n"
        "print(sorted({'torch', 'timm', 'datasets'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
