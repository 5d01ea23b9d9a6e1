"""The files of an export: one task as an ordinary adapter or a merged model, or the routed adapter of all tasks.

Checksums of an exported folder, in the form that ``sha256sum -c`` reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from medfed.core.errors import StudyError
from medfed.core.files import sha256_of
from medfed.export.exported import CONFIG, FOLDER, SUMS, Adapter, ModalityConfig
from medfed.export.lowrank import Factors, Truncation, folded, save_plain_lora, truncated
from medfed.export.model_card import CardFacts, model_card
from medfed.export.processor import modality_config, processor_of, save_modules, write_processor
from medfed.injection.experts import ADAPTER
from medfed.llm.huggingface import refuse_quantised
from medfed.llm.obtain.known import KNOWN
from medfed.report.run import Run
from medfed.runs.loaded import LoadedRun
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import Study
from medfed.tasks.base import Task

RUN_FILES = ("study.json", "normalisation.json", "scores.json")
CALIBRATED = (
    "Its answers are calibrated on unlabelled public examples, which suits balanced accuracy and not the probabilities "
    "of a rare finding."
)

TRUNCATION, CARD = "truncation.json", "README.md"


class Form(NamedTuple):
    """The form of an export: the routed adapter, or each of ``tasks``, cut to ``rank`` or merged into a whole model."""

    tasks: Sequence[str] = ()
    rank: int | None = None
    merge: bool = False


def write_task(run: LoadedRun, folder: Path, task: Task, form: Form, out: Path) -> list[str]:
    """Write ``task`` of the run in ``folder`` to ``out`` and return sentences on what was written."""
    out.mkdir(exist_ok=True)
    injected = run.injector.injected
    base, settings = base_of(run), loading(run.study)
    adapter: Adapter = "none" if injected.adapted is None else "merged" if form.merge else "lora"
    notes, rank = ["The LLM has no experts (FedPlug), so there is no adapter: encoders and projectors only."], None
    if injected.adapted is not None:
        layers = folded(injected, task)
        rank, notes = _rank(layers), _sentences(run, task, adapter)
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
    facts = _card_facts(run, task, adapter, notes, config.modalities)
    _finish(out, folder, facts)
    return notes if form.merge or not base.local else [*notes, _path_note(adapter, base.source)]


def write_routed(run: LoadedRun, folder: Path, out: Path) -> list[str]:
    """Write the run's routed adapter, encoders, heads and projectors to ``out``, for medfed to read."""
    run.injector.save(out)
    save_modules(dict(run.model.encoders.items()), out / "encoders.safetensors")
    save_modules(dict(run.model.heads.items()), out / "heads.safetensors")
    for name in RUN_FILES:
        shutil.copyfile(folder / name, out / name)
    settings = run.study.injection
    notes = [f"{settings.num_experts} experts of rank {settings.rank} and their router; one adapter for all tasks."]
    if run.injector.injected.adapted is None:
        notes = ["The LLM has no experts (FedPlug), so there is no adapter: encoders and projectors only."]
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
    foundation, settings = run.injector.injected.foundation, loading(run.study)
    if settings.model is None or settings.model in KNOWN:
        return Base(str(Path(foundation.source).resolve()), None, local=True)
    cached = foundation.source == settings.model  # a folder that was given may hold another revision
    return Base(settings.model, settings.revision if cached else None, local=False)


def loading(study: Study) -> HuggingFaceSettings:
    """Return how the LLM of ``study`` is loaded, once it lies in a folder; the devices here say nothing elsewhere."""
    settings = study.foundation
    if not isinstance(settings, HuggingFaceSettings):
        return HuggingFaceSettings(dtype="float32")
    return settings.model_copy(update={"device_map": None})


def _rank(layers: Mapping[str, Factors]) -> int:
    return max(len(factors.down) for factors in layers.values())


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
    layers = {
        name: {"relative_error": loss.relative_error, "energy_kept": loss.energy_kept}
        for name, loss in cut.losses.items()
    }
    facts = {
        "rank": cut.rank,
        "full_rank": full,
        "relative_error": cut.overall.relative_error,
        "energy_kept": cut.overall.energy_kept,
        "worst_layer": cut.worst,
        "layers": layers,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    worst = cut.losses[cut.worst].relative_error
    return (
        f"Rank {cut.rank} of {full} by singular value decomposition: relative error {cut.overall.relative_error:.6f}, "
        f"worst {worst:.6f} in {cut.worst}, energy kept {cut.overall.energy_kept:.6f}."
    )


def _path_note(adapter: Adapter, path: str) -> str:
    files = ["adapter_config.json"] if adapter == "lora" else []
    return f"The local path {path} stands in {' and '.join([*files, f'{FOLDER}/{CONFIG}'])}: the study names no model."


def _card_facts(
    run: LoadedRun,
    task: Task | None,
    kind: str,
    notes: Sequence[str],
    inputs: Mapping[str, ModalityConfig],
) -> CardFacts:
    foundation, study = run.injector.injected.foundation, run.study
    used = {one.dataset: "test" for one in study.tasks}
    used |= {one.dataset: "training and test" for one in study.train_tasks}
    return CardFacts(
        task=None if task is None else task.name,
        title="all tasks, routed" if task is None else task.title,
        question="" if task is None else task.question,
        kind=kind,
        base_model=foundation.name,
        base_is_local=base_of(run).local,
        update=notes,
        inputs={name: _in_words(config) for name, config in inputs.items()},
        datasets=used,
    )


def _in_words(config: ModalityConfig) -> str:
    shape = " × ".join(map(str, config.sample_shape))
    return f"{shape}, {config.units}; encoder {config.encoder['name']}, {config.dim} wide"


def _finish(out: Path, folder: Path, facts: CardFacts) -> None:
    """Write the card and the checksums of everything, the card's own among them."""
    sums = {str(path.relative_to(out)): sha256_of(path) for path in sorted(out.rglob("*")) if path.is_file()}
    (out / CARD).write_text(model_card(Run(folder), facts, sums), encoding="utf-8")
    sums[CARD] = sha256_of(out / CARD)
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    (out / SUMS).write_text("".join(lines), encoding="utf-8")


def save_merged(
    model: nn.Module, layers: Mapping[str, Factors], folder: Path, source: str, revision: str | None
) -> None:
    """Write configuration, weights (safetensors) and tokenizer of ``model`` with ``layers`` added to ``folder``.

    Args:
        model: the frozen LLM; it stays as it is.
        layers: updates by layer name.
        folder: an existing folder.
        source: name on the Hub (in the local cache) or folder that the model was loaded from, for its tokenizer.
        revision: of ``source`` on the Hub; it says nothing of a folder.

    Raises:
        StudyError: it is no model of transformers. RunError: its weights are quantised.
    """
    if not isinstance(model, PreTrainedModel):
        raise StudyError(f"{type(model).__name__} is no model of transformers", where="--merge", hint="leave it out")
    weights = merged_weights(model, layers)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True, trust_remote_code=False)
    model.save_pretrained(str(folder), state_dict=weights)
    tokenizer.save_pretrained(str(folder))


@torch.no_grad()
def merged_weights(model: nn.Module, layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return all weights of ``model`` with the updates added, in float64, then rounded once.

    The updated weights are new tensors, so this takes their size once more.

    Raises:
        RunError: they are quantised.
    """
    for name in layers:
        refuse_quantised(model.get_submodule(name))
    weights = dict(model.state_dict())
    for name, factors in layers.items():
        frozen = weights[f"{name}.weight"]
        update = (factors.up.double() @ factors.down.double()).to(frozen.device)
        weights[f"{name}.weight"] = (frozen.double() + update).to(frozen.dtype)
    return weights
