"""The three tiers of the tests, and what a test of the first one may not do.

A test's folder tells its tier: what lies in ``tests/unit`` is of ``check``, everything else of ``test``; the mark
``slow`` puts a test of any folder into ``slow``. A test of ``check`` fails when it starts a process or builds an LLM.
"""

from __future__ import annotations

import multiprocessing.process
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

UNIT = Path(__file__).parents[1] / "unit"
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system"})
HINT = "tests/unit is of the tier `make check`: a test that needs this belongs into another folder (CONTRIBUTING.md)"


class _Guard:
    """Refuses processes and LLMs while it is up."""

    def __init__(self) -> None:
        self.up = False
        sys.addaudithook(self._hear)
        self._start = multiprocessing.process.BaseProcess.start
        multiprocessing.process.BaseProcess.start = self._started(self._start)  # type: ignore[method-assign]

    def refuse(self, what: str) -> None:
        if self.up:
            pytest.fail(f"{what} in a unit test. {HINT}", pytrace=True)

    def watch_models(self) -> None:
        """Hear of LLMs from now on, if transformers is imported."""
        models = sys.modules.get("transformers.modeling_utils")
        if models is not None and not hasattr(models.PreTrainedModel, "medfed_guard"):
            built = models.PreTrainedModel.__init__

            def heard(model: Any, *args: Any, **options: Any) -> None:
                if "LM" in type(model).__name__:
                    self.refuse(f"an LLM ({type(model).__name__}) is built")
                built(model, *args, **options)

            models.PreTrainedModel.__init__ = heard
            models.PreTrainedModel.medfed_guard = self

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if event in STARTS:
            self.refuse(f"a process is started ({event})")

    def _started(self, start: Any) -> Any:
        def heard(process: Any) -> None:
            self.refuse("a process is started (multiprocessing)")
            start(process)

        return heard


_GUARD = _Guard()


def is_unit(item: pytest.Item) -> bool:
    """Whether a test is of the tier ``check``: it lies in ``tests/unit`` and is not slow."""
    return UNIT in item.path.parents and item.get_closest_marker("slow") is None


@contextmanager
def held_to_its_tier(item: pytest.Item) -> Iterator[None]:
    """Refuse what ``item`` may not do in its tier, its fixtures included."""
    _GUARD.watch_models()
    _GUARD.up = is_unit(item)
    try:
        yield
    finally:
        _GUARD.up = False
