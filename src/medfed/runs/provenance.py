"""What a number needs to be believed: code, versions, machine, data. Wall-clock facts stand here and nowhere else."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medfed import __version__
from medfed.datasets.decoded import Decoded

PACKAGES = ("torch", "transformers", "peft", "numpy", "polars", "scikit-learn", "safetensors")


def provenance() -> dict[str, Any]:
    """Return the facts known before a run starts."""
    return {
        "medfed": __version__,
        **_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "started": now(),
        "command": " ".join(["medfed", *sys.argv[1:]]),
    }


def data_facts(data: Mapping[str, Decoded], checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return the card, size, checksum and left-out files of every dataset."""
    return {
        name: {
            "title": decoded.card.title,
            "version": decoded.card.version,
            "licence": decoded.card.licence,
            "citation": decoded.card.citation,
            "note": decoded.card.note,
            "synthetic": decoded.card.synthetic,
            "num_examples": len(decoded.index),
            "num_patients": decoded.index["patient"].n_unique(),
            "skipped": [problem._asdict() for problem in decoded.skipped],
            "checksum": checksums[name],
        }
        for name, decoded in data.items()
    }


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> dict[str, Any]:
    """Return commit and dirtiness of the checkout the package runs from; nulls when it runs from an installed wheel."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if head.returncode:
        return {"commit": None, "dirty": None}
    status = subprocess.run(["git", "-C", here, "status", "--porcelain"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}
