"""What a process held is free when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from medfed.runs.baselines import locked


def test_a_lock_is_held_by_one_process_and_freed_when_it_dies(tmp_path: Path) -> None:
    folder = tmp_path / "federations" / "one"
    code = (
        "import sys, time, pathlib; from medfed.runs.baselines import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), waiting=False) as mine:\n"
        "    print(mine, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "True"
        with locked(folder, waiting=False) as mine:
            assert not mine
        other.send_signal(signal.SIGKILL)
        with locked(folder, waiting=True) as mine:
            assert mine
    finally:
        other.kill()
        other.wait()
