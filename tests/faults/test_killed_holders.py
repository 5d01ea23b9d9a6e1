"""What a process held is free when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from medfed.core.files import locked


def test_a_lock_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    lock = tmp_path / "federations" / ".one.lock"
    code = (
        "import sys, time, pathlib; from medfed.core.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), waiting=False) as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "True"
        with locked(lock, waiting=False) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        with locked(lock, waiting=True) as mine:
            assert mine
    finally:
        other.kill()
        other.wait()
