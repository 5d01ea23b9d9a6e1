"""The definition of a part: its source file, or, for a class of a notebook's cell, its own code.

A cell has no file. Its functions are known by their source, which IPython keeps, or else by their bytecode. Classes,
functions and constants that they name count too, so that a change of any of them is a change of the part.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from pydantic import BaseModel

MAIN = ("__main__", "__mp_main__")
_CONSTANTS = (str, bytes, int, float, complex, bool, tuple, frozenset, type(None))
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def in_main(kind: type) -> bool:
    """Whether ``kind`` is defined in a notebook or in the script that runs, where no other process finds it."""
    return kind.__module__ in MAIN


def source_file(kind: type) -> Path | None:
    """Return the file that ``kind`` is defined in; None if there is none, as for a notebook's cell."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def definition_of(part: object) -> str:
    """Return a SHA-256 in hex of how ``part``, a class or an object, is defined; values of an object count too."""
    walk = _Walk()
    walk.visit(part if isinstance(part, type) else type(part))
    if isinstance(part, BaseModel):
        walk.add("fields", json.dumps(part.model_dump(mode="json"), sort_keys=True))
    elif not isinstance(part, type):
        walk.add("fields", _plain(sorted(vars(part).items())))
    return hashlib.sha256("\0".join(walk.pieces).encode()).hexdigest()


class _Walk:
    """Texts that tell how something is defined, in an order that does not depend on where it is."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._seen: set[int] = set()

    def add(self, *texts: str) -> None:
        self.pieces += texts

    def visit(self, value: object) -> None:
        """Add a class, a function, a descriptor of one, or a constant."""
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            for accessor in (value.fget, value.fset):
                self.visit(accessor)
        elif isinstance(value, cached_property):
            self.visit(value.func)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, FunctionType):
            self._function(inspect.unwrap(value))
        else:
            self.add(_plain(value))

    def _class(self, kind: type) -> None:
        self.add("class", kind.__qualname__)
        if not _session(kind.__module__) or id(kind) in self._seen:
            self.add(kind.__module__)
            return
        self._seen.add(id(kind))
        for base in kind.__bases__:
            self._class(base)
        if issubclass(kind, BaseModel):
            self.add(*(f"{name}: {_plain(field)}" for name, field in sorted(kind.model_fields.items())))
        for name, value in sorted(vars(kind).items()):
            if name == "__annotations__" or not (name.startswith(("__pydantic", "_abc")) or _is_plumbing(name, value)):
                self.add(name)
                self.visit(value)

    def _function(self, function: Any) -> None:
        code = function.__code__
        if not _session(function.__module__) or id(code) in self._seen:
            self.add(str(function.__module__), function.__qualname__)
            return
        self._seen.add(id(code))
        self.add(_source(function))
        for name in sorted(set(_names(code)) & function.__globals__.keys()):
            self._named(name, function.__globals__[name])
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self._named(name, cell.cell_contents)

    def _named(self, name: str, value: object) -> None:
        if isinstance(value, (type, FunctionType, *_CONSTANTS)):
            self.add(name)
            self.visit(value)


def _session(module: str | None) -> bool:
    """Whether ``module`` is a notebook, a script or text that was executed, rather than a file that is imported."""
    if module in MAIN or module is None:
        return True
    return module not in sys.builtin_module_names and getattr(sys.modules.get(module), "__file__", None) is None


def _is_plumbing(name: str, value: object) -> bool:
    return name.startswith("__") and not isinstance(value, FunctionType | staticmethod | classmethod | property)


def _source(function: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return f"{sys.version_info[:2]} {'; '.join(_bytecode(function.__code__))}"


def _bytecode(code: CodeType) -> Iterable[str]:
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        else:
            yield _plain(constant)


def _names(code: CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _plain(value: object) -> str:
    """Return the text of a value without the addresses in it."""
    return _ADDRESS.sub("", repr(sorted(value, key=repr) if isinstance(value, set | frozenset) else value))
