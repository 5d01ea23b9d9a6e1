"""The plan of the house: how many files a package holds, what every import needs, what the package declares."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "medfed"
REGISTRIES = {"datasets", "twins", "algorithms", "tasks"}
"""Packages of like things: as many files as there are things."""
MOST_FILES, MOST_AT_THE_TOP = 15, 6


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def packages() -> list[Path]:
    return sorted({path.parent for path in modules()})


@pytest.mark.parametrize("package", packages(), ids=lambda path: path.relative_to(PACKAGE.parent).as_posix())
def test_a_package_holds_few_files(package: Path) -> None:
    files = list(package.glob("*.py"))
    most = MOST_AT_THE_TOP if package == PACKAGE else MOST_FILES
    if package.name not in REGISTRIES:
        assert len(files) <= most, f"{len(files)} files in {package}"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name, lines in extras.items() if name != "dev" for line in lines)]
    return {normal(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_package_is_declared() -> None:
    known, distributions = declared(), packages_distributions()
    missing = {}
    for path in modules():
        for name in set(imported(path)) - set(sys.stdlib_module_names) - {"medfed"}:
            if not {normal(one) for one in distributions.get(name, [name])} & known:
                missing.setdefault(name, path.relative_to(ROOT).as_posix())
    assert not missing


def test_every_module_says_what_it_is() -> None:
    mute = [path for path in modules() if len((ast.get_docstring(ast.parse(path.read_text())) or "").strip()) < 10]
    assert not mute
