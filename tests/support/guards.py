"""What a test may not do, refused while it runs.

A test's folder tells its tier: what lies in ``tests/unit`` is of ``make check``, everything else of ``make test``; the
mark ``slow`` puts a test of any folder into ``make test-slow``. A test of ``make check`` starts no process and builds
no LLM. No test writes into the repository, leaves anything in its working directory, or opens what a command of the
README leaves behind.
"""

from __future__ import annotations

import multiprocessing.process
import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit"
LEFT_BEHIND = tuple(map(str, (ROOT / "runs", *(ROOT / f"report{end}.html" for end in ("", "-real")))))
"""Of `make demo`, `make bench` and the like."""
USERS_CACHE = str(Path("~/.cache/medfed").expanduser())
STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system"})
HINT = "tests/unit is of `make check`: a test that needs this belongs into another folder (CONTRIBUTING.md)"


class _Guard:
    """Hears what a test does; raises where the test may not."""

    def __init__(self) -> None:
        self.is_testing = self.is_unit = False
        sys.addaudithook(self._hear)
        self._start = multiprocessing.process.BaseProcess.start
        multiprocessing.process.BaseProcess.start = self._started(self._start)  # type: ignore[method-assign]

    def refuse_in_unit(self, what: str) -> None:
        """Fail a unit test that does ``what``."""
        if self.is_unit:
            pytest.fail(f"{what} in a unit test. {HINT}")

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_testing:
            return
        if event in STARTS:
            self.refuse_in_unit(f"a process is started ({event})")
        if event == "open" and isinstance(args[0], str):
            _refuse_file(args[0], args[2])

    def _started(self, start: Any) -> Any:
        def heard(process: Any) -> None:
            self.refuse_in_unit("a process is started (multiprocessing)")
            start(process)

        return heard


_GUARD = _Guard()


def watch_models() -> None:
    """Hear of LLMs from now on, if transformers is imported."""
    models = sys.modules.get("transformers.modeling_utils")
    if models is None or hasattr(models.PreTrainedModel, "medfed_guard"):
        return
    built = models.PreTrainedModel.__init__

    def heard(model: Any, *args: Any, **options: Any) -> None:
        if type(model).__name__.endswith("LM"):
            _GUARD.refuse_in_unit(f"an LLM ({type(model).__name__}) is built")
        built(model, *args, **options)

    models.PreTrainedModel.__init__ = heard
    models.PreTrainedModel.medfed_guard = True


def _refuse_file(path: str, flags: int) -> None:
    if path.startswith((*LEFT_BEHIND, USERS_CACHE)):
        pytest.fail(f"{path} is opened: a command of the README leaves it behind, or not. Give the test its own")
    writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and path.startswith(str(ROOT)) and "__pycache__" not in path:
        pytest.fail(f"{path} is written: it lies in the repository. Write into tmp_path")


@contextmanager
def guarded(item: pytest.Item, folder: Path) -> Iterator[None]:
    """Let a test run in the empty ``folder``, its fixtures included, and refuse what it may not do."""
    watch_models()
    _GUARD.is_testing = True
    _GUARD.is_unit = UNIT in item.path.parents and item.get_closest_marker("slow") is None
    try:
        with chdir(folder):
            yield
    finally:
        _GUARD.is_testing = _GUARD.is_unit = False
