"""The machine, the versions and the day of the numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

PACKAGES = ("torch", "transformers", "peft", "numpy", "polars")
CPUINFO = Path("/proc/cpuinfo")


def head() -> dict[str, str]:
    """Return processor, memory, device, versions and the day."""
    memory = psutil.virtual_memory().total / 2**30
    facts = {
        "processor": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; one thread is used",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
    }
    facts |= {name: version(name) for name in PACKAGES}
    return facts | {"medfed": _commit(), "date": datetime.now(UTC).date().isoformat()}


def _commit() -> str:
    """Return the commit, marked where files differ from it; the version outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    described = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return described.stdout.strip() or version("medfed")


def _processor() -> str:
    """Return the model's name, and the widest instructions that torch uses."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
