"""The clients' data as files, written once for all worker processes, which map them into memory instead of copying.

What training reads is here and nothing else: samples, presence, targets, questions, ids of example and patient, and
which rows every client holds. Arrays are ``.npy`` and read-only, so their pages are shared; what many clients share is
written once. It is data of patients: the folder is this user's only, and goes when the exchange is closed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from medfed.core.errors import RunError
from medfed.datasets.base import Card
from medfed.datasets.decoded import Decoded
from medfed.federated.client import Client
from medfed.tasks.base import Labels, Task, TaskSet

IDS = ("example", "patient")
CONTENTS = "contents.json"


def write_spool(folder: Path, clients: Iterable[Client]) -> dict[str, Task]:
    """Lay the data of ``clients`` into the new ``folder``; what lay there before goes.

    Returns:
        The tasks by name, which :func:`read_spool` needs: they are code, not data.

    Raises:
        RunError: the disk has not enough space.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    writer = _Writer(folder)
    held = {
        client.id: {kind: {name: writer.number(part) for name, part in parts.items()} for kind, parts in _kinds(client)}
        for client in clients
    }
    writer.write(held)
    return {part.task.name: part.task for part in writer.sets}


def read_spool(folder: Path, tasks: Mapping[str, Task]) -> dict[str, Client]:
    """Return the clients of a spool by id; their arrays are mapped, not read."""
    contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    data = [_data(folder / f"data-{number}", facts) for number, facts in enumerate(contents["data"])]
    labels = [_labels(folder / f"labels-{number}") for number in range(contents["labels"])]
    sets = [
        TaskSet(tasks[item["task"]], data[item["data"]], rows[slice(*item["rows"])], labels[item["labels"]])
        for item in contents["sets"]
    ]
    return {
        name: Client(name, *({task: sets[number] for task, number in kind.items()} for kind in kinds.values()))
        for name, kinds in contents["clients"].items()
    }


def _kinds(client: Client) -> list[tuple[str, Mapping[str, TaskSet]]]:
    return [("private", client.tasks), ("public", client.public)]


class _Writer:
    """Numbers what it is shown, each object once, and writes it all at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sets: list[TaskSet] = []
        self._numbers: dict[int, int] = {}

    def number(self, part: TaskSet) -> int:
        """Return the number of ``part``."""
        if id(part) not in self._numbers:
            self._numbers[id(part)] = len(self.sets)
            self.sets.append(part)
        return self._numbers[id(part)]

    def write(self, clients: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
        """Write all sets, and ``clients`` as client → private or public → task → number of a set."""
        data = list({id(part.data): part.data for part in self.sets}.values())
        labels = list({id(part.labels): part.labels for part in self.sets}.values())
        read = [{name for part in self.sets if part.data is one for name in part.task.modalities} for one in data]
        self._require_space(data, read, labels)
        for number, (one, modalities) in enumerate(zip(data, read, strict=True)):
            _write_data(self._folder / f"data-{number}", one, sorted(modalities))
        for number, label in enumerate(labels):
            _write_labels(self._folder / f"labels-{number}", label)
        ends = np.cumsum([0, *(len(part) for part in self.sets)]).tolist()
        np.save(self._folder / "rows.npy", np.concatenate([part.rows for part in self.sets]))
        place = {id(value): number for values in (data, labels) for number, value in enumerate(values)}
        sets = [
            {"task": part.task.name, "data": place[id(part.data)], "labels": place[id(part.labels)], "rows": span}
            for part, span in zip(self.sets, pairwise(ends), strict=True)
        ]
        facts = [
            {"name": one.name, "card": one.card.model_dump(mode="json"), "modalities": sorted(names)}
            for one, names in zip(data, read, strict=True)
        ]
        contents = {"data": facts, "labels": len(labels), "sets": sets, "clients": clients}
        (self._folder / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")

    def _require_space(self, data: list[Decoded], read: list[set[str]], labels: list[Labels]) -> None:
        needed = sum(one.samples[name].nbytes for one, names in zip(data, read, strict=True) for name in names)
        needed += sum(label.targets.nbytes for label in labels)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise RunError(
                f"worker processes share the data as files: {needed:,} bytes are needed, {free:,} are free",
                where=self._folder,
                hint="make room on this disk, or run with --workers 1",
            )


def _write_data(folder: Path, data: Decoded, modalities: list[str]) -> None:
    folder.mkdir()
    data.index.select(IDS).write_parquet(folder / "ids.parquet")
    for name in modalities:
        np.save(folder / f"samples.{name}.npy", data.samples[name])
        np.save(folder / f"present.{name}.npy", data.present[name])


def _data(folder: Path, facts: Mapping[str, Any]) -> Decoded:
    samples, present = (
        {name: np.load(folder / f"{kind}.{name}.npy", mmap_mode="r") for name in facts["modalities"]}
        for kind in ("samples", "present")
    )
    card = Card.model_validate(facts["card"])
    return Decoded(facts["name"], card, pl.read_parquet(folder / "ids.parquet"), samples, present)


def _write_labels(folder: Path, labels: Labels) -> None:
    folder.mkdir()
    np.save(folder / "targets.npy", labels.targets)
    pl.DataFrame({"question": labels.questions}, schema={"question": pl.Utf8}).write_parquet(
        folder / "questions.parquet"
    )


def _labels(folder: Path) -> Labels:
    questions = pl.read_parquet(folder / "questions.parquet")["question"]
    return Labels(np.load(folder / "targets.npy", mmap_mode="r"), tuple(questions))
