"""Look-up by name in a registry tuple; an unknown name is answered with suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol, TypeVar, runtime_checkable

from medfed.core.errors import StudyError


@runtime_checkable
class Named(Protocol):
    """Anything with a ``name``."""

    @property
    def name(self) -> str: ...  # noqa: D102


T = TypeVar("T", bound=Named)


def by_name(entries: Iterable[T]) -> dict[str, T]:
    """Index registry ``entries`` by name; a name used twice is an error."""
    table: dict[str, T] = {}
    for entry in entries:
        if entry.name in table:
            raise StudyError(f"the name {entry.name!r} is registered twice", hint="rename one of the two entries")
        table[entry.name] = entry
    return table


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return ``table[name]`` or raise :class:`StudyError` naming the ``kind`` and the nearest known names."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    raise StudyError(f"unknown {kind} {name!r}", hint=f"{guess}known: {', '.join(sorted(table))}")


def collect(modules: Iterable[str], attribute: str) -> dict[str, Any]:
    """Import each of ``modules`` and index, by name, what their tuples called ``attribute`` hold.

    A registry is a tuple of module paths, so that a new part is one file and one line.
    """
    return by_name(entry for module in modules for entry in getattr(import_module(module), attribute))
