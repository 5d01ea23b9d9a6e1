"""Write what a run learned in the forms that others read.

With tasks: for each an ordinary LoRA of PEFT (or a merged model), and next to it the encoders, projectors and prompt of
the task. Without: the routed adapter, which medfed reads. A folder appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from medfed.core.catalog import TASKS
from medfed.core.errors import RunError, StudyError
from medfed.core.files import written_whole
from medfed.export.files import Form, write_routed, write_task
from medfed.export.lowrank import changes_nothing
from medfed.records.folder import RunFolder
from medfed.records.schema import StudyFile
from medfed.runs.loaded import LoadedRun
from medfed.runs.provenance import load_plugins_of
from medfed.tasks.base import Task
from medfed.tasks.question_answering import QuestionAnswering


class Exported(NamedTuple):
    """A folder that was written, and sentences on what is in it."""

    folder: Path
    notes: list[str]


def export_run(folder: Path, out: Path, cache: Path, foundation: Path | None, form: Form) -> list[Exported]:
    """Write the finished run in ``folder`` to the new folder ``out``; several tasks get a folder each inside it.

    ``form`` names the tasks to write an ordinary adapter of, trained or not; without one it is the routed adapter.
    ``cache`` and ``foundation`` are the folders of tiny LLMs and of a Hugging Face causal LM.

    Raises:
        RunError: ``out`` exists, or the run is not finished, or its experts are none or zero.
        StudyError: an unknown task, or options that do not go together.
        DiskError: it cannot be written; nothing is left behind.
    """
    load_plugins_of(RunFolder(folder))
    chosen = [_askable(name) for name in dict.fromkeys(form.tasks)]
    _check(folder, out, form)
    run = LoadedRun(folder, cache, foundation)
    injected = run.injector.injected
    for task in chosen:
        injected.check(task)
    if injected.adapted is None and (form.rank is not None or form.merge):
        hint = "export without it: encoders and projectors are all that was learned"
        raise RunError("the LLM has no experts (num_experts = 0), so there is no adapter", where=folder, hint=hint)
    if changes_nothing(injected):
        hint = "run the study with injection.align_rounds below rounds.num_rounds, so that the experts learn"
        raise RunError("the experts have learned nothing: the adapter is zero in every layer", where=folder, hint=hint)
    num_bytes = sum(value.nbytes for value in injected.parameters() if form.merge or value.requires_grad)
    with written_whole(out, num_bytes * max(1, len(chosen))) as partial:
        partial.mkdir()
        if not chosen:
            return [Exported(out, write_routed(run, folder, partial))]
        if len(chosen) == 1:
            return [Exported(out, write_task(run, folder, chosen[0], form, partial))]
        return [Exported(out / task.name, write_task(run, folder, task, form, partial / task.name)) for task in chosen]


def _askable(name: str) -> Task:
    task: Task = TASKS.lookup(name)
    if not (task.question or isinstance(task, QuestionAnswering)):
        raise StudyError("it asks no question that an LLM could answer", where=f"task {name!r}", hint="medfed list")
    return task


def _check(folder: Path, out: Path, form: Form) -> None:
    tasks, rank, merge = form
    if out.exists():
        raise RunError("the folder exists", where=out, hint="choose another --out, or remove it")
    if rank is not None and rank < 1:
        raise StudyError(f"--rank {rank} leaves nothing", hint="give 1 or more, or leave --rank out")
    if not tasks and (rank is not None or merge):
        hint = "name a task: --task cd"
        raise StudyError("without a task there is no one adapter to cut or merge: α depends on the task", hint=hint)
    if rank is not None and merge:
        raise StudyError("a merged model has no rank", hint="give --rank or --merge")
    run = RunFolder(folder)
    if run.exists(StudyFile.NAME) and run.read(StudyFile).job == "benchmark":
        hint = 'export a run of job "inject"'
        raise RunError("a benchmark has no LLM, so nothing to export", where=folder, hint=hint)
