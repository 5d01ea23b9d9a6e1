"""The installation on this machine: whether it is enough (``medfed doctor``), and what completes it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement

from medfed.core.errors import MedfedError

REQUIRED = ("torch", "transformers", "peft", "safetensors", "polars", "pydicom", "wfdb", "scikit-learn")


class Check(NamedTuple):
    """One line of the diagnosis."""

    name: str
    value: str
    ok: bool
    hint: str = ""


def diagnose() -> list[Check]:
    """Return all checks; nothing leaves this machine."""
    import torch  # noqa: PLC0415 (large; loaded where it is used)

    memory_gib = psutil.virtual_memory().available / 2**30
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return [
        Check("python", sys.version.split()[0], sys.version_info >= (3, 11), "install Python 3.11 or newer"),
        *[_package(name) for name in REQUIRED],
        Check("cores", str(os.cpu_count()), True),
        Check("free memory", f"{memory_gib:.1f} GiB", memory_gib > 4, "the demo needs 4 GiB"),
        Check("free disk", f"{free_gib:.1f} GiB", free_gib > 2, "run folders and twins need 2 GiB"),
        Check("accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none; CPU it is", True),
        _writable(Path.cwd()),
    ]


def installing(extra: str) -> str:
    """Return the command that installs what the extra ``extra`` needs, package by package."""
    return f"pip install {' '.join(repr(f'{need.name}{need.specifier}') for need in _needs(extra))}"


def require_extra(extra: str, purpose: str) -> None:
    """Raise MedfedError where a package of an extra of pyproject.toml is missing, or has a version that medfed does not
    work with. ``purpose``, a plural, is what needs it."""
    for need in _needs(extra):
        try:
            installed = version(need.name)
        except PackageNotFoundError:
            what = f"{purpose} need {need.name}, which is not installed"
            raise MedfedError(what, hint=installing(extra)) from None
        if not need.specifier.contains(installed, prereleases=True):
            what = f"{purpose} need {need.name}{need.specifier}, and {need.name} {installed} is installed"
            raise MedfedError(what, hint=installing(extra))


def _needs(extra: str) -> list[Requirement]:
    """Return the requirements of an extra, as the installed medfed states them."""
    needs = [Requirement(line) for line in requires("medfed") or []]
    return [need for need in needs if need.marker is not None and need.marker.evaluate({"extra": extra})]


def _package(name: str) -> Check:
    try:
        return Check(name, version(name), True)
    except PackageNotFoundError:
        return Check(name, "missing", False, f"pip install -c constraints.txt {name}")


def _writable(folder: Path) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Check("folder", str(folder), True)
    except OSError as error:
        return Check("folder", str(folder), False, f"cannot write here: {error.strerror}")


def processor() -> str:
    """Return the CPU's model: another one gives other last bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
