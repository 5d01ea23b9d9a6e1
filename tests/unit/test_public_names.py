"""``import medfed`` gives the public names, and the page for authors lists the public modules."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

import medfed

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def public_modules() -> list[str]:
    """Return the modules in the page's table; ``.name`` is of the same package as the one before."""
    table = PAGE.read_text(encoding="utf-8").partition("## The public interface")[2].partition("\n## ")[0]
    found: list[str] = []
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`(.*?)`", row):
            found.append(name if name.startswith("medfed") else found[-1].rpartition(".")[0] + name)
    return found


def test_the_public_names_are_there_and_no_others() -> None:
    assert dir(medfed) == sorted(medfed.__all__)
    assert all(getattr(medfed, name) is not None for name in medfed.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Runn'"):
        medfed.Runn  # noqa: B018


@pytest.mark.parametrize("name", [name for name in medfed.__all__ if name[0].isupper()])
def test_a_public_class_is_the_one_of_its_module(name: str) -> None:
    given = getattr(medfed, name)
    assert given.__name__ == name
    assert given.__doc__


def test_the_names_a_type_checker_reads_are_the_ones_that_are_given() -> None:
    assert {name for names in medfed._HOMES.values() for name in names} | {"__version__"} == set(medfed.__all__)


@pytest.mark.parametrize("name", ["medfed", "medfed.api", *public_modules()])
def test_a_public_module_lists_its_names_and_has_them(name: str) -> None:
    module = import_module(name)
    assert module.__all__
    assert not [public for public in module.__all__ if not hasattr(module, public)]


def test_the_page_imports_from_public_modules_and_public_names_alone() -> None:
    imports = re.findall(r"^from (medfed[\w.]*) import (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert imports
    for module, names in imports:
        assert module in public_modules()
        assert set(names.split(", ")) <= set(import_module(module).__all__)


def test_the_homes_of_the_public_names_are_public_modules() -> None:
    homes = {f"medfed.{module}" for module in medfed._HOMES} - {"medfed.api", "medfed.core.catalog"}
    assert homes <= set(public_modules())
