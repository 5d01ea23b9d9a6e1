"""The origin of a number: code, versions, machine, data and cost. Clock times are here and nowhere else."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from medfed import __version__
from medfed.core.catalog import registered_plugins
from medfed.core.diagnosis import processor
from medfed.core.errors import PluginError
from medfed.core.plugins import Plugin, load_expected
from medfed.datasets.decoded import Decoded
from medfed.records.folder import RunFolder
from medfed.records.schema import Cost, DataFacts, PluginFacts, ProvenanceFile, Round, Skipped, StudyFile, Timing
from medfed.study.study import Study

PACKAGES = ("torch", "transformers", "peft", "numpy", "polars", "scikit-learn", "safetensors")


def provenance(study: Study) -> ProvenanceFile:
    """Return the facts known before a run of ``study`` starts."""
    return ProvenanceFile(
        medfed=__version__,
        **_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        versions={name: version(name) for name in PACKAGES},
        device="cpu",
        threads=torch.get_num_threads(),
        started=now(),
        command=_command(),
        plugins=tuple(PluginFacts(**asdict(plugin)) for plugin in study.extensions),
    )


def data_facts(data: Mapping[str, Decoded], checksums: Mapping[str, str]) -> dict[str, DataFacts]:
    """Return the card, size, checksum and left-out files of every dataset."""
    kept = ("title", "version", "licence", "citation", "note", "synthetic")
    return {
        name: DataFacts(
            **{field: getattr(decoded.card, field) for field in kept},
            num_examples=len(decoded.index),
            num_patients=decoded.index["patient"].n_unique(),
            skipped=tuple(Skipped(**problem._asdict()) for problem in decoded.skipped),
            checksum=checksums[name],
        )
        for name, decoded in data.items()
    }


def cost_of(run: RunFolder) -> Cost:
    """Return bytes and seconds over all rounds of the run, and the process's peak memory."""
    rounds, timings = run.lines(Round), run.lines(Timing)
    clients = [client for line in rounds for client in line.clients]
    errors = [line.upload_error for line in rounds if line.upload_error is not None]
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(
        bytes_up=sum(client.bytes_up for client in clients),
        bytes_down=sum(client.bytes_down for client in clients),
        upload_error=median(errors) if errors else None,
        train_seconds=sum(line.seconds for line in timings if line.phase == "train"),
        round_seconds=sum(line.seconds for line in timings if line.phase == "federate"),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )


def load_plugins_of(run: RunFolder) -> None:
    """Load the plugins that a finished run was made with, from where they were, if their content is the same.

    Raises PluginError if one is absent, changed, in the run's own folder, or was defined in a notebook or script.
    """
    wanted = set(run.read(StudyFile).settings.get("plugins", ())) if run.exists(StudyFile.NAME) else set()
    if not wanted - {plugin.sha256 for plugin in registered_plugins()}:
        return
    for facts in run.read(ProvenanceFile).plugins:
        if facts.sha256 not in {plugin.sha256 for plugin in registered_plugins()}:
            _load_recorded(Plugin(facts.name, facts.sha256, facts.source), run.root)


def _load_recorded(plugin: Plugin, folder: Path) -> None:
    name, source = plugin.name, plugin.source
    if not source:
        what = f"this run was made with the {name} of a notebook or script, which is not registered here as it was"
        hint = "run that cell first; or put the part into a file, and run the study with plugins=[FILE]"
        raise PluginError(what, where=folder, hint=hint)
    if Path(source).is_absolute() and Path(source).is_relative_to(folder.resolve()):
        what = "a plugin in the run's own folder is not executed unasked"
        raise PluginError(what, where=source, hint=f"read it, and pass --plugin {source}")
    try:
        load_expected(plugin)
    except PluginError as error:
        hint = "pass --plugin FILE_OR_MODULE with the content it had"
        raise PluginError(f"the plugin {name} of this run: {error.what}", where=error.where, hint=hint) from error


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    """Return the command, or the script or notebook that called the library."""
    program = Path(sys.argv[0]).name
    called = program in ("medfed", "medfed.exe", "__main__.py")
    return " ".join(["medfed", *sys.argv[1:]]) if called else f"medfed.run in {program or 'Python'}"


def _commit() -> dict[str, Any]:
    """Return commit and dirtiness of the checkout the package runs from; nulls when it runs from an installed wheel."""
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if head.returncode:
        return {"commit": None, "dirty": None}
    status = subprocess.run(["git", "-C", here, "status", "--porcelain"], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return {"commit": head.stdout.strip(), "dirty": bool(status.stdout.strip())}
