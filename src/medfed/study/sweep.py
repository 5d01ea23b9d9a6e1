"""A sweep: one study file, axes of named overrides, seeds. The product of the axes gives the cells.

    name = "table3"
    base = "demo.toml"               # the study that every cell starts from, beside this file
    seeds = [0, 1, 2, 3, 4]

    [set]                            # for every cell
    baselines = ["federated", "local", "centralised"]

    [axes.method.medfed]             # the base as it is
    [axes.method.FedKIM]             # as the paper prints it
    injection.recipe = "paper"

    [axes.backbone.FedAvg]
    algorithm = "fedavg"
    [axes.backbone.FedProx]
    algorithm = { name = "fedprox", mu = 1e-4 }

    [quick]                          # --quick: all cells, fewer seeds, smaller
    seeds = [0]
    [quick.set]
    rounds.num_rounds = 2

A study file may have ``[quick.set]`` too. A cell at one seed *is* the run that ``medfed run`` makes of the base with
the cell's overrides, in the base's folder. So cells of two sweeps that agree in every setting are computed once. Cells
are compared along the last axis: its first value with every other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from medfed.core.errors import StudyError
from medfed.study.parts import SettingsModel
from medfed.study.study import Study, explained, merged, read_tree, study_of

Settings = dict[str, Any]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Quick(SettingsModel):
    """The changes of ``--quick``."""

    seeds: Seeds = (0,)  # in place of the sweep's
    set: Settings = Field(default={})  # settings laid over every cell


class Sweep(SettingsModel):
    """A sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # folder of the comparison
    description: str = ""  # one sentence for the report
    base: str  # study file, relative to the sweep's
    seeds: Seeds = (0, 1, 2, 3, 4)  # every cell runs at each
    paper: tuple[str, ...] = ()  # tables and figures that the cells reproduce, for the columns next to ours
    set: Settings = Field(default={})  # settings laid over the base for every cell
    # axis → value → settings laid over those
    axes: Annotated[dict[str, Annotated[dict[str, Settings], Field(min_length=1)]], Field(min_length=1)]
    quick: Quick = Quick()  # what `--quick` changes


@dataclass(frozen=True)
class Cell:
    """One combination of axis values: its label, the values by axis, and the study (at the base's seed)."""

    label: str
    values: Mapping[str, str]
    study: Study

    def at(self, seed: int) -> Study:
        """Return the cell's study at ``seed``."""
        return self.study.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Plan:
    """A sweep to run: cells × seeds, and the name and words of the comparison."""

    name: str
    description: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    paper: tuple[str, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Labels (a, b) that are compared: along the last axis the first value with every other, then neighbours."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for cell in self.cells:
            groups.setdefault(tuple(cell.values.values())[:-1], []).append(cell.label)
        compared: list[tuple[str, str]] = []
        for labels in groups.values():
            compared += [(labels[0], other) for other in labels[1:]]
            compared += itertools.pairwise(labels[1:])
        return compared


def is_sweep(path: Path) -> bool:
    """Whether the file at ``path`` is a sweep rather than a study."""
    return bool({"base", "axes"} & read_tree(path).keys())


def parse_seeds(text: str | None) -> tuple[int, ...] | None:
    """Read ``0,1,2``; None stays None. Raises StudyError if it is something else."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise StudyError(f"--seeds wants whole numbers, got {text!r}", hint="for example --seeds 0,1,2")
    return tuple(dict.fromkeys(int(word) for word in words))


def load_plan(
    path: Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None, *, quick: bool = False
) -> Plan:
    """Read a sweep file, or a study file as a sweep of one cell; ``quick`` takes the quick form.

    Every cell takes ``overrides`` (``key.path=value``) last; ``seeds`` stand in place of the file's. Raises StudyError,
    naming file, cell and field.
    """
    tree = read_tree(path)
    if not {"base", "axes"} & tree.keys():
        study = study_of(_quick_form(tree, path) if quick else tree, path, overrides)
        cell = Cell(study.name, {}, study)
        return Plan(study.name, study.description, (cell,), tuple(seeds or (study.seed,)))
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise explained(error, path, Sweep) from error
    base, last = read_tree(path.parent / sweep.base), [sweep.quick.set] if quick else []
    cells = []
    for names in itertools.product(*sweep.axes.values()):
        label, values = " · ".join(names), dict(zip(sweep.axes, names, strict=True))
        layers = [base, sweep.set, *(sweep.axes[axis][name] for axis, name in values.items()), *last]
        study = study_of(reduce(merged, layers, {}), f"{path}, cell {label}", overrides)
        cells.append(Cell(label, values, study))
    name, file_seeds = (f"{sweep.name}-quick", sweep.quick.seeds) if quick else (sweep.name, sweep.seeds)
    return Plan(name, sweep.description, tuple(cells), tuple(seeds or file_seeds), sweep.paper)


def _quick_form(tree: Settings, path: Path) -> Settings:
    """Return a study's settings with those of its ``[quick.set]`` laid over them."""
    if "quick" not in tree:
        raise StudyError("this study has no quick form", where=path, hint="leave --quick out, or give it [quick.set]")
    try:
        return merged(tree, Quick.model_validate(tree["quick"]).set)
    except ValidationError as error:
        raise explained(error, f"{path}, [quick]", Quick) from error
