"""What a number needs to be believed: code, versions, machine, data. Wall-clock facts stand here and nowhere else."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medfed import __version__
from medfed.core.catalog import registered_plugins
from medfed.core.errors import PluginError
from medfed.core.plugins import Plugin, load_expected
from medfed.datasets.decoded import Decoded
from medfed.runs.folder import RunDir
from medfed.study.study import Study

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
        "command": _command(),
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


def plugin_facts(study: Study) -> dict[str, list[dict[str, str]]]:
    """Return name, content and source of the plugins that the study uses; nothing where it uses none."""
    return {"plugins": [asdict(plugin) for plugin in study.extensions]} if study.extensions else {}


def load_plugins_of(run: RunDir) -> None:
    """Load the plugins that a finished run was made with, from where they were, if their content is the same.

    Raises:
        PluginError: one is absent, changed, lies in the run's own folder, or was defined in a notebook or script.
    """
    wanted = set(run.read_json("study.json").get("plugins", ())) if run.exists("study.json") else set()
    if not wanted - {plugin.sha256 for plugin in registered_plugins()}:
        return
    for facts in run.read_json("provenance.json").get("plugins", ()):
        plugin = Plugin(**facts)
        if plugin.sha256 not in {known.sha256 for known in registered_plugins()}:
            _load_recorded(plugin, run.root)


def _load_recorded(plugin: Plugin, folder: Path) -> None:
    if not plugin.source:
        raise PluginError(
            f"this run was made with the {plugin.name} of a notebook or script, which is not registered here as it was",
            where=folder,
            hint="run that cell first; or put the part into a file, and run the study with plugins=[FILE]",
        )
    if Path(plugin.source).is_absolute() and Path(plugin.source).is_relative_to(folder.resolve()):
        raise PluginError(
            "a plugin in the run's own folder is not executed unasked",
            where=plugin.source,
            hint=f"read it, and pass --plugin {plugin.source}",
        )
    try:
        load_expected(plugin)
    except PluginError as error:
        raise PluginError(
            f"the plugin {plugin.name} of this run: {error.what}",
            where=error.where,
            hint="pass --plugin FILE_OR_MODULE with the content it had",
        ) from error


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    """Return the command, or the script or notebook that called the library."""
    program = Path(sys.argv[0]).name
    if program in ("medfed", "medfed.exe", "__main__.py"):
        return " ".join(["medfed", *sys.argv[1:]])
    return f"medfed.run in {program or 'Python'}"


def _commit() -> dict[str, Any]:
    """Return commit and dirtiness of the checkout the package runs from; nulls when it runs from an installed wheel."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if head.returncode:
        return {"commit": None, "dirty": None}
    status = subprocess.run(["git", "-C", here, "status", "--porcelain"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}
