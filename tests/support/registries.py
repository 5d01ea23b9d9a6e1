"""What a test registers or loads as a plugin is gone after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from medfed.core import plugins
from medfed.core.catalog import REGISTRIES


@contextmanager
def untouched() -> Iterator[None]:
    """Put registries, plugins and modules back as they were before the block."""
    parts = [(registry._parts.copy(), registry._origins.copy()) for registry in REGISTRIES]
    state = plugins._state
    plugins._state = plugins._State()
    plugins._state.loaded, plugins._state.files = dict(state.loaded), dict(state.files)
    try:
        yield
    finally:
        for name in {*plugins._state.files, *plugins._state.loaded} - {*state.files, *state.loaded}:
            sys.modules.pop(name, None)
        plugins._state = state
        for registry, (before, origins) in zip(REGISTRIES, parts, strict=True):
            for name in set(registry._parts) - set(before):
                if name in registry._origins:
                    del registry._parts[name]
            registry._parts.update(before)
            registry._origins = origins
