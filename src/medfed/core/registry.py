"""Parts by name: tasks, datasets, encoders, … of the package, of plugins and of a user's own code.

A registry knows the names of the package's own parts and the modules they are in. A module is imported when one of its
parts is first looked up, so that reading a study costs only what the study names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from medfed.core.code import definition_of
from medfed.core.errors import StudyError
from medfed.core.plugins import Plugin, load_installed, origin_of, refused

Part = TypeVar("Part")


class Registry(Mapping[str, Part]):
    """Name → part of one ``kind``, as messages call it. ``modules``: name → module of the package's own parts, which
    holds them in a tuple: ``TASKS``, ``MODALITIES``, …"""

    def __init__(self, kind: str, modules: Mapping[str, str]) -> None:
        self.kind, self._modules = kind, dict(modules)
        self.plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        self._parts: dict[str, Part] = {}
        self._origins: dict[str, Plugin | None] = {}

    def __getitem__(self, name: str) -> Part:
        if name in self._modules and name not in self._parts:
            for part in getattr(import_module(self._modules[name]), self.plural.upper()):
                self._parts.setdefault(part.name, part)
        self._search(name)
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        self._search(name)
        return name in self._modules or name in self._parts

    def __iter__(self) -> Iterator[str]:
        load_installed()
        return iter(dict.fromkeys([*self._modules, *self._parts]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _search(self, name: object) -> None:
        """Load the plugins of installed packages if the name is neither the package's nor registered."""
        if name not in self._modules and name not in self._parts:
            load_installed()

    def register(self, part: Any, origin: Plugin | None = None) -> None:
        """Add ``part``, an object or a class, under its ``name``; ``origin`` is None for a notebook or a script. The
        same definition again, as a notebook's cell runs it, takes its place. Raises StudyError if another part has the
        name."""
        name = part.name
        before = self._parts.get(name)
        again = before is not None and _place(before, self._origins.get(name)) == _place(part, origin)
        if name in self._modules or (before is not None and not again):
            raise StudyError(f"the {self.kind} {name!r} is registered twice", hint="give one of the two another name")
        self._parts[name], self._origins[name] = part, origin

    def adopt(self, part: Any) -> str:
        """Register ``part`` unless it is what its name stands for already; return the name."""
        name: str = part.name
        if name not in self or self[name] != part:
            kind = part if isinstance(part, type) else type(part)
            self.register(part, origin_of(kind.__module__))
        return name

    def origin(self, name: str) -> Plugin | None:
        """Return the plugin that ``name`` is from; None for a part of the package. A part that a notebook or a script
        defines is its own plugin, without a source."""
        if name in self._modules:
            return None
        part = self[name]
        return self._origins[name] or Plugin(f"{self.kind} {name}", f"sha256:{definition_of(part)}", "")

    def origins(self) -> list[Plugin]:
        """Return the plugins of all registered parts that are not the package's."""
        return [origin for name in self._origins if (origin := self.origin(name)) is not None]

    def lookup(self, name: str) -> Part:
        """Return the part called ``name``; raise :class:`StudyError` with the nearest known names."""
        if name in self:
            return self[name]
        raise unknown(self, name, self.kind)


def _place(part: Any, origin: Plugin | None) -> tuple[str, str]:
    """Return where a part is defined, by the plugin or else the module, and its class."""
    cls = part if isinstance(part, type) else type(part)
    return origin.source if origin else cls.__module__, cls.__qualname__


def unknown(names: Mapping[str, Any], name: str, kind: str) -> StudyError:
    """Return the error for a name that is not among ``names``, with the nearest ones as its next step."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    barred = "".join(f"; not allowed here: the plugin {plugin}" for plugin in refused())
    return StudyError(f"unknown {kind} {name!r}", hint=f"{guess}known: {', '.join(sorted(names))}{barred}")


def implementation(path: str) -> Any:
    """Return what ``module:attribute`` names, importing the module now. Settings name what they stand for in this form,
    so that reading them imports no torch."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
