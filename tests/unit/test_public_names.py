"""``import medfed`` gives the public names, costs next to nothing, and every module says which names are its own."""

from __future__ import annotations

import pytest

import medfed


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
