"""Write what a run learned in the forms that others read; a folder appears whole or not at all.

With tasks: for each an ordinary LoRA of PEFT (or a merged model), and next to it the encoders, projectors and prompt of
the task. Without: the routed adapter, which medfed reads.

``processor/`` says how a sample becomes prompt embeddings. Its ``prompt.safetensors`` holds the embedded texts around
the tokens, so that a client builds prompts without the LLM. ``SHA256SUMS`` has the form that ``sha256sum -c`` reads.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from medfed.core.catalog import TASKS
from medfed.core.errors import RunError, StudyError
from medfed.core.files import sha256_of, written_whole
from medfed.export.exported import CONFIG, FOLDER, SUMS, Adapter, ModalityConfig, ProcessorConfig, PromptConfig
from medfed.export.lowrank import Factors, Loss, Truncation, changes_nothing, folded, save_plain_lora, truncated
from medfed.export.model_card import CardFacts, model_card
from medfed.injection.encode import HEAD
from medfed.injection.experts import ADAPTER
from medfed.injection.model import module_name
from medfed.llm.checkpoints import foundation_checksum
from medfed.llm.huggingface import refuse_quantised
from medfed.llm.obtain.known import KNOWN
from medfed.models.base import Encoder
from medfed.records.folder import RunFolder
from medfed.records.schema import StudyFile
from medfed.report.run import Run
from medfed.runs.loaded import LoadedRun
from medfed.runs.provenance import load_plugins_of
from medfed.study.foundation import HuggingFaceSettings
from medfed.tasks.base import Task
from medfed.tasks.question_answering import QuestionAnswering

CALIBRATED = (
    "Its answers are calibrated on unlabelled public examples, which suits balanced accuracy and not the probabilities "
    "of a rare finding."
)

NO_EXPERTS = "The LLM has no experts (FedPlug), so there is no adapter: encoders and projectors only."
TRUNCATION, CARD = "truncation.json", "README.md"


class Form(NamedTuple):
    """The form of an export: the routed adapter, or each of ``tasks``, cut to ``rank`` or merged into a whole model."""

    tasks: Sequence[str] = ()
    rank: int | None = None
    merge: bool = False


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
    unsure = [run.note] if run.note else []
    num_bytes = sum(value.nbytes for value in injected.parameters() if form.merge or value.requires_grad)
    with written_whole(out, num_bytes * max(1, len(chosen))) as partial:
        partial.mkdir()
        if not chosen:
            return [Exported(out, [*write_routed(run, folder, partial), *unsure])]
        if len(chosen) == 1:
            return [Exported(out, [*write_task(run, folder, chosen[0], form, partial), *unsure])]
        written = [(task.name, write_task(run, folder, task, form, partial / task.name)) for task in chosen]
        return [Exported(out / name, [*notes, *unsure]) for name, notes in written]


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


def write_task(run: LoadedRun, folder: Path, task: Task, form: Form, out: Path) -> list[str]:
    """Write ``task`` of the run in ``folder`` to ``out`` and return sentences on what was written."""
    out.mkdir(exist_ok=True)
    injected = run.injector.injected
    base, settings = base_of(run), loading(run)
    adapter: Adapter = "none" if injected.adapted is None else "merged" if form.merge else "lora"
    notes, rank = [NO_EXPERTS], None
    if injected.adapted is not None:
        layers = folded(injected, task)
        rank, notes = max(len(factors.down) for factors in layers.values()), _sentences(run, task, adapter)
        if form.rank is not None:
            cut, full = truncated(layers, form.rank), rank
            layers, rank = cut.factors, cut.rank
            notes.append(_write_truncation(cut, full, out / TRUNCATION))
        if form.merge:
            save_merged(injected.foundation.model, layers, out, injected.foundation.source, settings.revision)
        else:
            save_plain_lora(layers, out, injected.adapted.peft_config[ADAPTER], base.source, base.revision)
    named = injected.foundation.name if form.merge else base.source  # a merged model needs no base
    config = processor_of(run, task, adapter=adapter, rank=rank, base=named, foundation=settings)
    write_processor(run, config, out)
    if config.calibration:
        notes.append(CALIBRATED)
    _finish(out, folder, _card_facts(run, task, adapter, notes, config.modalities))
    return notes if form.merge or not base.local else [*notes, _path_note(adapter, base.source)]


def write_routed(run: LoadedRun, folder: Path, out: Path) -> list[str]:
    """Write the run's routed adapter, encoders, heads and projectors to ``out``, for medfed to read."""
    run.injector.save(out)
    save_modules(dict(run.model.encoders.items()), out / "encoders.safetensors")
    save_modules(dict(run.model.heads.items()), out / "heads.safetensors")
    for name in ("study.json", "normalisation.json", "scores.json"):
        shutil.copyfile(folder / name, out / name)
    settings = run.study.injection
    routed = f"{settings.num_experts} experts of rank {settings.rank} and their router; one adapter for all tasks."
    notes = [NO_EXPERTS if run.injector.injected.adapted is None else routed]
    inputs = {name: modality_config(run, name) for name in run.study.encoders}
    _finish(out, folder, _card_facts(run, None, "routed", notes, inputs))
    return notes


class Base(NamedTuple):
    """The LLM as others find it: its name on the Hub and the revision there, or its folder on this machine."""

    source: str
    revision: str | None
    local: bool


def base_of(run: LoadedRun) -> Base:
    """Return where others find the LLM of ``run``; its folder is named where no hub has it under the study's name."""
    foundation, settings = run.injector.injected.foundation, loading(run)
    if settings.model is None or settings.model in KNOWN:
        return Base(str(Path(foundation.source).resolve()), None, local=True)
    cached = foundation.source == settings.model  # a folder that was given may hold another revision
    return Base(settings.model, settings.revision if cached else None, local=False)


def loading(run: LoadedRun) -> HuggingFaceSettings:
    """Return how the LLM of ``run`` is loaded, once it lies in a folder, and its checksum: another one is refused.

    The devices here say nothing elsewhere.
    """
    settings, foundation = run.study.foundation, run.injector.injected.foundation
    if not isinstance(settings, HuggingFaceSettings):
        return HuggingFaceSettings(dtype="float32", sha256=foundation_checksum(Path(foundation.source)))
    return settings.model_copy(update={"device_map": None, "sha256": foundation.info["sha256"]})


def _sentences(run: LoadedRun, task: Task, adapter: Adapter) -> list[str]:
    settings = run.study.injection
    total = settings.num_experts * settings.rank
    how = "merged into the LLM's weights" if adapter == "merged" else "scaling 1"
    notes = [f"A LoRA of rank {total} = {settings.num_experts} experts · rank {settings.rank}, {how}."]
    if settings.num_experts > 1:
        weights = ", ".join(f"{weight:.3f}" for weight in run.injector.injected.alpha([task])[0].tolist())
        notes.append(f"The experts' weights for this task are folded in: {weights}.")
    if task.name not in run.study.train:
        notes.append("The run did not train this task: the router read its description.")
    return notes


def _write_truncation(cut: Truncation, full: int, path: Path) -> str:
    def numbers(loss: Loss) -> dict[str, float]:
        return {"relative_error": loss.relative_error, "energy_kept": loss.energy_kept}

    layers = {name: numbers(loss) for name, loss in cut.losses.items()}
    facts = {"rank": cut.rank, "full_rank": full, **numbers(cut.overall), "worst_layer": cut.worst, "layers": layers}
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    worst = cut.losses[cut.worst].relative_error
    return (
        f"Rank {cut.rank} of {full} by singular value decomposition: relative error {cut.overall.relative_error:.6f}, "
        f"worst {worst:.6f} in {cut.worst}, energy kept {cut.overall.energy_kept:.6f}."
    )


def _path_note(adapter: Adapter, path: str) -> str:
    files = ["adapter_config.json"] if adapter == "lora" else []
    where = " and ".join([*files, f"{FOLDER}/{CONFIG}"])
    return f"The local path {path} stands in {where}: the study names no model of the Hub."


def _card_facts(
    run: LoadedRun, task: Task | None, kind: str, notes: Sequence[str], inputs: Mapping[str, ModalityConfig]
) -> CardFacts:
    used = {one.dataset: "test" for one in run.study.tasks}
    used |= {one.dataset: "training and test" for one in run.study.train_tasks}
    described = {}
    for name, config in inputs.items():
        shape = " × ".join(map(str, config.sample_shape))
        described[name] = f"{shape}, {config.units}; encoder {config.encoder['name']}, {config.dim} wide"
    title, question = ("all tasks, routed", "") if task is None else (task.title, task.question)
    base, local = run.injector.injected.foundation.name, base_of(run).local
    return CardFacts(task.name if task else None, title, question, kind, base, local, notes, described, used)


def _finish(out: Path, folder: Path, facts: CardFacts) -> None:
    """Write the card and the checksums of everything, the card's own among them."""
    sums = {str(path.relative_to(out)): sha256_of(path) for path in sorted(out.rglob("*")) if path.is_file()}
    (out / CARD).write_text(model_card(Run(folder), facts, sums), encoding="utf-8")
    lines = [f"{digest}  {name}\n" for name, digest in (sums | {CARD: sha256_of(out / CARD)}).items()]
    (out / SUMS).write_text("".join(lines), encoding="utf-8")


def save_merged(
    model: nn.Module, layers: Mapping[str, Factors], folder: Path, source: str, revision: str | None
) -> None:
    """Write configuration, weights (safetensors) and tokenizer of ``model``, with ``layers`` added, to ``folder``.

    ``model`` stays as it is. Its tokenizer comes from ``source``, a folder or a name on the Hub (in the local cache).
    Raises StudyError if it is no model of transformers, RunError if its weights are quantised.
    """
    if not isinstance(model, PreTrainedModel):
        raise StudyError(f"{type(model).__name__} is no model of transformers", where="--merge", hint="leave it out")
    weights = merged_weights(model, layers)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True, trust_remote_code=False)
    model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))


@torch.no_grad()
def merged_weights(model: nn.Module, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return all weights of ``model`` with the updates added, in float64, then rounded once: new tensors.

    Raises RunError if they are quantised.
    """
    for name in layers:
        refuse_quantised(model.get_submodule(name))
    weights = dict(model.state_dict())
    for name, factors in layers.items():
        frozen = weights[f"{name}.weight"]
        update = (factors.up.double() @ factors.down.double()).to(frozen.device)
        weights[f"{name}.weight"] = (frozen.double() + update).to(frozen.dtype)
    return weights


def processor_of(
    run: LoadedRun, task: Task, *, adapter: Adapter, rank: int | None, base: str, foundation: HuggingFaceSettings
) -> ProcessorConfig:
    """Return the configuration of ``task`` in ``run``, whose LLM loads from ``base`` as ``foundation`` says."""
    injected, with_heads = run.injector.injected, run.study.injection.head_tokens
    heads = tuple(name for name, one in run.model.tasks.items() if with_heads and one.modalities == task.modalities)
    prompt, key = injected.prompt(task), f"{task.name}: "
    offsets = {name: tuple(offset) for name, offset in run.injector.offsets.items() if name.startswith(key)}
    return ProcessorConfig(
        task=task.model_dump(mode="json"),
        trained=task.name in run.study.train,
        adapter=adapter,
        rank=rank,
        expert_weights=tuple(injected.alpha([task])[0].tolist()),
        foundation=foundation,
        base_model=base,
        prompt=PromptConfig(before_ids=prompt.before, after_ids=prompt.after, answer_ids=prompt.answers),
        shown=(*task.modalities, *(f"{HEAD}{name}" for name in heads)),
        modalities={name: modality_config(run, name) for name in task.modalities},
        heads=heads,
        calibration={name.removeprefix(key): offset for name, offset in offsets.items()},
        injection=run.study.injection,
        max_new_tokens=run.study.evaluation.max_new_tokens,
    )


def write_processor(run: LoadedRun, config: ProcessorConfig, folder: Path) -> None:
    """Write ``processor/`` into ``folder``."""
    place = folder / FOLDER
    place.mkdir()
    (place / CONFIG).write_text(config.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")
    injected, used = run.injector.injected, [module_name(name) for name in config.tokens]
    save_modules({name: injected.projectors[name] for name in used}, place / "projectors.safetensors")
    save_modules({name: run.model.encoders[name] for name in config.modalities}, place / "encoders.safetensors")
    texts = {"before": config.prompt.before_ids, "after": config.prompt.after_ids}
    embedded = {name: injected.foundation.embed(ids).detach().cpu().contiguous() for name, ids in texts.items()}
    save_file(embedded, place / "prompt.safetensors")
    if config.heads:
        save_modules({name: run.model.heads[name] for name in config.heads}, place / "heads.safetensors")


def save_modules(modules: Mapping[str, nn.Module], path: Path) -> None:
    """Write the weights and buffers of ``modules``, by name, to one safetensors file."""
    tensors = {name: value.cpu().contiguous().clone() for name, value in nn.ModuleDict(modules).state_dict().items()}
    save_file(tensors, path)


def modality_config(run: LoadedRun, name: str) -> ModalityConfig:
    """Return how ``run`` reads the modality ``name``."""
    modality, spec, moments = run.study.modality(name), run.study.encoders[name], run.moments[name]
    return ModalityConfig(
        settings=modality.model_dump(mode="json"),
        units=modality.units,
        sample_shape=modality.sample_shape,
        prepare=inspect.getdoc(modality.prepare) or "",
        normalise=inspect.getdoc(modality.normalise) or "",
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        encoder={"name": spec.name, **spec.model_dump(mode="json")},
        dim=cast(Encoder, run.model.encoders[name]).dim,
    )
