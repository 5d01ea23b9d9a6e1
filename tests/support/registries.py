"""A process as it begins: only the package's own parts are registered, and what a test adds is gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from medfed.core import plugins
from medfed.core.catalog import REGISTRIES


@contextmanager
def untouched() -> Iterator[None]:
    """Know no plugin and no part of a user inside the block, and put everything back after it."""
    state, modules = plugins._state, set(sys.modules)
    before = [(registry._parts, registry._origins) for registry in REGISTRIES]
    plugins._state = plugins._State()
    for registry in REGISTRIES:
        registry._parts = {name: part for name, part in registry._parts.items() if name not in registry._origins}
        registry._origins = {}
    try:
        yield
    finally:
        for name in {*plugins._state.files, *plugins._state.loaded} - modules:
            sys.modules.pop(name, None)
        plugins._state = state
        for registry, (parts, origins) in zip(REGISTRIES, before, strict=True):
            registry._parts, registry._origins = parts, origins
