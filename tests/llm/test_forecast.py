"""A dry run's forecast: bytes and parameters are exact, and time grows with the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedConfig
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.errors import StudyError
from medfed.core.progress import Reporter
from medfed.core.rng import numpy_rng
from medfed.data.cohort import cohort_of
from medfed.data.decode import Reading, decode_all
from medfed.data.sources import find_sources
from medfed.injection.batching import epoch_order
from medfed.injection.encode import HEAD, encode
from medfed.injection.model import InjectedModel
from medfed.llm.forward import run
from medfed.llm.foundation import load_foundation
from medfed.runs import cost as dry_run
from medfed.runs.cost import (
    Workload,
    cache_bytes,
    devices_of,
    need_lines,
    time_lines,
    trained_params,
    verdict,
    weight_bytes,
    without_weights,
    workload,
)
from medfed.runs.trial import Shape, Trial, trial
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings
from medfed.study.study import study_of
from support.llm_toys import FAMILIES, IMAGE, examples, federated_model, kept_tensors, settings, tokenizer, write_model
from support.studies import QUICK

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
DIMS = {"image": 5, "sound": 7, f"{HEAD}image-task": 2}
SHAPE = Shape(batch=2, length=12, answer_positions=3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_the_weights_are_those_of_the_loaded_model(folders: Path, family: str, dtype: str) -> None:
    folder, own = folders / family, HuggingFaceSettings.model_validate({"dtype": dtype})
    if not folder.exists():
        write_model(folder, family)
    loaded = load_foundation(own, cache=folders, path=folder).model
    assert weight_bytes(without_weights(folder), own) == sum(value.nbytes for value in loaded.parameters())


def test_the_bytes_of_4_bit_weights_are_those_of_the_loaded_model(folders: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = write_model(folders / "wide", "llama", hidden_size=64, intermediate_size=192, head_dim=16)
    own = HuggingFaceSettings(dtype="bfloat16", load_in_4bit=True)
    loaded = load_foundation(own, cache=folders, path=folder).model
    states = [value.quant_state for value in loaded.parameters() if hasattr(value, "quant_state")]
    assert len(states) == 14, "2 layers × (q k v o + gate up down)"
    held = sum(value.nbytes for value in loaded.parameters())
    held += sum(state.absmax.nbytes + state.code.nbytes for state in states)
    assert weight_bytes(without_weights(folder), own) == held


@pytest.mark.parametrize("own", [settings(), settings(num_experts=1), settings(num_experts=0, projector="mlp")])
def test_the_trained_parameters_are_those_of_the_injected_model(folders: Path, own: InjectionSettings) -> None:
    folder = folders / "phi3"
    if not folder.exists():
        write_model(folder, "phi3")
    foundation = load_foundation(HuggingFaceSettings(dtype="float32"), cache=folders, path=folder)
    injected = InjectedModel(foundation, DIMS, own)
    trained = sum(value.numel() for value in injected.parameters() if value.requires_grad)
    assert sum(trained_params(without_weights(folder), DIMS, own).values()) == trained


@torch.no_grad()
def test_keys_and_values_take_what_the_cache_holds(folders: Path) -> None:
    folder = folders / "mistral"
    if not folder.exists():
        write_model(folder, "mistral", sliding_window=None)
    loaded = load_foundation(HuggingFaceSettings(dtype="float32"), cache=folders, path=folder).model
    cache = loaded(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(text_config(folder), Shape(2, 5, 1), HuggingFaceSettings(dtype="float32")) == held


def text_config(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = without_weights(folder).config.get_text_config()
    return config


def test_a_trial_runs_and_what_a_step_keeps_grows_with_the_batch(folders: Path) -> None:
    folder = folders / "gemma2"
    if not folder.exists():
        write_model(folder, "gemma2")
    config, own = text_config(folder), HuggingFaceSettings(dtype="float32")
    one, two = (trial(config, Shape(n, 12, 3), own, settings(), "cpu") for n in (2, 4))
    assert min(one.step_seconds, one.forward_seconds, one.token_seconds) > 0
    assert 1.5 < two.kept_bytes / one.kept_bytes < 2.5, "but for what does not depend on the batch"


def test_time_is_linear_in_the_work_and_says_its_unit() -> None:
    ran = Trial(step_seconds=2.0, forward_seconds=0.5, token_seconds=0.1, kept_bytes=1)
    work = Workload(num_steps=10, num_closed=40, num_open=8, num_calibrating=16, shape=SHAPE, dims={})
    print("10 × 2 s = 20 s; 40 / 2 × 0.5 s = 10 s; 16 / 2 × 0.5 s = 4 s; 8 / 2 × (0.5 s + 4 × 0.1 s) = 3.6 s")
    lines = list(time_lines(work, ran, 4, "cpu"))
    assert [line.split(" for ")[0].split(" to ")[-1 if "up" in line else 0] for line in lines[:2]] == [
        "  time: 20.0 s",
        "  time: 10.0 s",
    ]
    assert lines[2] == "  time: 4.0 s to calibrate on 16 public examples"
    assert "3.6 s to answer 8 open" in lines[3]
    assert "  time: 20.0 min for 600 injection steps" in next(time_lines(replace(work, num_steps=600), ran, 4, "cpu"))
    assert "  time: 20.0 h for 36,000 injection" in next(time_lines(replace(work, num_steps=36000), ran, 4, "cpu"))


def test_too_little_memory_is_said() -> None:
    assert list(need_lines({"weights": 3 * 2**30, "nothing": 0})) == ["  memory: 3.00 GiB weights"]
    fits = "  memory: 3.00 GiB together; 4.00 GiB are free on cuda:0, cuda:1: it fits"
    assert verdict(3 * 2**30, 4 * 2**30, ["cuda:0", "cuda:1"]) == fits
    assert "does NOT fit" in verdict(5 * 2**30, 4 * 2**30, ["cpu"])


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
@pytest.mark.parametrize("batch", [1, 4])
def test_what_a_step_keeps_is_what_all_layers_keep(tmp_path: Path, family: str, batch: int) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 3} if family == "gemma3" else {}
    folder = write_model(tmp_path, family, num_hidden_layers=6, **kinds)
    loading, own = HuggingFaceSettings(dtype="float32"), settings(dropout=0.0)
    injected = InjectedModel(load_foundation(loading, cache=tmp_path, path=folder), {"image": 5}, own)
    group = encode(federated_model().eval(), [(IMAGE, examples(IMAGE, batch).batches(batch)[0])])[0]
    laid, _ = injected._batch([injected.prompt(IMAGE)], [group])
    laid = replace(laid, embeddings=laid.embeddings.detach().requires_grad_())
    rows = 1 if family == "opt" else batch
    with injected.train().mixing(torch.full((rows, own.num_experts), 0.5, requires_grad=True)):
        windows = injected.foundation.windows
        held = kept_bytes(injected.llm, lambda: run(injected.llm, windows, laid).float().log_softmax(-1).sum())
    shape = Shape(batch, laid.embeddings.shape[1], laid.num_answer_positions)
    ran = trial(text_config(folder), shape, loading, own, "cpu", mixed=True)
    assert ran.kept_bytes == pytest.approx(held, rel=0.02)


def kept_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for its gradient, parameters aside."""
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    storages = [tensor.untyped_storage() for tensor in kept_tensors(run)]
    return sum(storage.nbytes() for storage in storages if storage.data_ptr() not in weights)


def test_the_work_is_that_of_the_cohort(tmp_path: Path) -> None:
    changes = {"rounds": {"num_rounds": 4}, "unseen": ["ped", "ecd", "mr"], "twins": {"num_patients": 60}}
    study = study_of({**QUICK, **changes, "evaluation": {"watch_every": 2}}, "quick")
    quiet = Reporter(Console(quiet=True))
    sources = find_sources(study, None, tmp_path, quiet)
    work = workload(study, sources, tokenizer())
    cohort = cohort_of(study, sources, decode_all(study, sources.roots, Reading(quiet)), Reading(quiet))

    targets = {name: own.targets.numpy() for name, own in cohort.public.items()}
    balanced = {name: getattr(study.injection, f"balance_{name}") for name in ("tasks", "classes")}
    order = epoch_order(targets, numpy_rng(0), balance_tasks=balanced["tasks"], balance_classes=balanced["classes"])
    epochs = study.rounds.num_rounds * study.injection.num_epochs
    assert work.num_steps == epochs * len(range(0, len(order), study.injection.batch_size))
    developed = sum(len(own) for own in cohort.development.values())
    sizes = {name: len(own) for name, own in cohort.test.items()}
    rephrased = 3 * sum(min(100, size) for name, size in sizes.items() if name != "mr")
    print("a negation and two paraphrases of closed questions; open ones twice more, without the patient")
    assert work.num_closed == sum(sizes.values()) + 2 * developed + rephrased + 2 * sizes["mr"]
    assert work.num_open == 3 * sizes["mr"]
    plain = {"watch_every": 2, "controls": ["reuse", "count"]}
    bare = workload(study_of({**QUICK, **changes, "evaluation": plain}, "quick"), sources, tokenizer())
    assert (bare.num_closed, bare.num_open) == (sum(sizes.values()) + 2 * developed, sizes["mr"])
    print("ped and lod are asked of chest radiographs, ecd and ead of ECGs; mr is open")
    assert work.num_calibrating == len(cohort.public["lod"]) + len(cohort.public["ead"]) > 0


@pytest.mark.parametrize("name", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_weights_that_are_spread_have_the_memory_of_all_gpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = HuggingFaceSettings(device_map=name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_of(spread, "meta") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of(spread, "meta") == ["cuda:0", "cuda:1"]


def test_a_device_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("everywhere", "cuda:0"):
        with pytest.raises(StudyError, match=rf"foundation\.device_map: there is no device '{name}'"):
            devices_of(HuggingFaceSettings(device_map=name), "cpu")
    assert devices_of(HuggingFaceSettings(load_in_4bit=True), "meta") == ["cpu"]
    assert devices_of(HuggingFaceSettings(), "meta") == ["meta"]


def said(tmp_path: Path, *options: str) -> str:
    """What a dry run of a small study says."""
    small = ["train=['cd']", "unseen=[]", "twins.num_patients=40", "foundation={kind='huggingface'}"]
    words = [word for text in small for word in ("--set", text)]
    places = ["--cache", str(tmp_path), "--runs", str(tmp_path / "runs")]
    found = CliRunner().invoke(app, ["run", str(STUDY), "--dry-run", *words, *places, *options])
    assert found.exit_code == 0, found.exception
    return " ".join(found.output.split())


def test_an_llm_that_is_not_here_keeps_nothing_else_from_being_said(tmp_path: Path) -> None:
    output = said(tmp_path)
    for part in ("LLM: not here (no LLM is named)", "hf download", "parameters a client trains", "run folder"):
        assert part in output, part


def test_weights_that_do_not_fit_are_not_tried(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders / "gemma3"
    if not folder.exists():
        write_model(folder, "gemma3")
    monkeypatch.setattr(dry_run, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(dry_run, "trial", lambda *_, **__: pytest.fail("there is no room for a trial"))
    output = said(tmp_path, "--foundation", str(folder))
    for part in ("weights, bfloat16", "it does NOT fit", "not tried", "run folder"):
        assert part in output, part


def test_a_trial_that_runs_out_of_memory_says_so(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders / "gemma3"
    if not folder.exists():
        write_model(folder, "gemma3")

    def full(*_: object, **__: object) -> Trial:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(dry_run, "trial", full)
    output = said(tmp_path, "--foundation", str(folder))
    for part in ("weights, bfloat16", "too much for cpu: it does NOT fit", "run folder"):
        assert part in output, part


def test_the_command_says_all_of_it(folders: Path, tmp_path: Path) -> None:
    folder = folders / "gemma3"
    if not folder.exists():
        write_model(folder, "gemma3")
    output = said(tmp_path, "--dtype", "float32", "--foundation", str(folder))
    for part in ("Gemma3ForCausalLM", "weights, float32", "it fits", "injection steps on cpu", "closed questions"):
        assert part in output, part
    assert not (tmp_path / "runs").exists()
