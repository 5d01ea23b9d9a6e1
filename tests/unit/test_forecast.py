"""A dry run's forecast: bytes and parameters are exact, and time grows with the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from injection_toys import settings
from language_models import FAMILIES, write_model
from medfed.cli import app
from medfed.dry_run import memory_lines, time_lines
from medfed.injection.encoding import HEAD
from medfed.injection.forecast import (
    Shape,
    Trial,
    cache_bytes,
    on_meta,
    read_config,
    trained_params,
    trial,
    weight_bytes,
)
from medfed.injection.foundation import HuggingFaceSettings, load_foundation
from medfed.injection.injected import InjectedModel
from medfed.injection.settings import InjectionSettings
from medfed.workload import Workload

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
DIMS = {"image": 5, "sound": 7, f"{HEAD}image-task": 2}
SHAPE = Shape(batch=2, length=12, asked=3)


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
    assert weight_bytes(on_meta(read_config(folder)), own) == sum(value.nbytes for value in loaded.parameters())


def test_the_bytes_of_4_bit_weights_are_those_of_the_loaded_model(folders: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = write_model(folders / "wide", "llama", hidden_size=64, intermediate_size=192, head_dim=16)
    own = HuggingFaceSettings(dtype="bfloat16", load_in_4bit=True)
    loaded = load_foundation(own, cache=folders, path=folder).model
    states = [value.quant_state for value in loaded.parameters() if hasattr(value, "quant_state")]
    assert len(states) == 14, "2 layers × (q k v o + gate up down)"
    held = sum(value.nbytes for value in loaded.parameters())
    held += sum(state.absmax.nbytes + state.code.nbytes for state in states)
    assert weight_bytes(on_meta(read_config(folder)), own) == held


@pytest.mark.parametrize("own", [settings(), settings(num_experts=1), settings(num_experts=0, projector="mlp")])
def test_the_trained_parameters_are_those_of_the_injected_model(folders: Path, own: InjectionSettings) -> None:
    folder = folders / "phi3"
    if not folder.exists():
        write_model(folder, "phi3")
    foundation = load_foundation(HuggingFaceSettings(dtype="float32"), cache=folders, path=folder)
    injected = InjectedModel(foundation, DIMS, own)
    trained = sum(value.numel() for value in injected.parameters() if value.requires_grad)
    assert sum(trained_params(on_meta(read_config(folder)), DIMS, own).values()) == trained


@torch.no_grad()
def test_keys_and_values_take_what_the_cache_holds(folders: Path) -> None:
    folder = folders / "mistral"
    if not folder.exists():
        write_model(folder, "mistral", sliding_window=None)
    loaded = load_foundation(HuggingFaceSettings(dtype="float32"), cache=folders, path=folder).model
    cache = loaded(input_ids=torch.ones(2, 5, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(read_config(folder), Shape(2, 5, 1), HuggingFaceSettings(dtype="float32")) == held


def test_a_trial_runs_and_what_a_step_keeps_grows_with_the_batch(folders: Path) -> None:
    folder = folders / "gemma2"
    if not folder.exists():
        write_model(folder, "gemma2")
    config, own = read_config(folder), HuggingFaceSettings(dtype="float32")
    one, two = (trial(config, Shape(n, 12, 3), own, settings(), "cpu") for n in (2, 4))
    assert min(one.step_seconds, one.forward_seconds, one.token_seconds) > 0
    assert 1.5 < two.kept_bytes / one.kept_bytes < 2.5, "but for what does not depend on the batch"


def test_time_is_linear_in_the_work_and_says_its_unit() -> None:
    ran = Trial(step_seconds=2.0, forward_seconds=0.5, token_seconds=0.1, kept_bytes=1)
    work = Workload(num_steps=10, num_closed=40, num_open=8, shape=SHAPE, dims={})
    print("10 × 2 s = 20 s; 40 / 2 × 0.5 s = 10 s; 8 / 2 × (0.5 s + 4 × 0.1 s) = 3.6 s")
    lines = list(time_lines(work, ran, 4, "cpu"))
    assert [line.split(" for ")[0].split(" to ")[-1 if "up" in line else 0] for line in lines[:2]] == [
        "  time: 20.0 s",
        "  time: 10.0 s",
    ]
    assert "3.6 s to answer 8 open" in lines[2]
    assert "  time: 20.0 min for 600 injection steps" in next(time_lines(replace(work, num_steps=600), ran, 4, "cpu"))
    assert "  time: 20.0 h for 36,000 injection" in next(time_lines(replace(work, num_steps=36000), ran, 4, "cpu"))


def test_too_little_memory_is_said() -> None:
    assert list(memory_lines({"weights": 3 * 2**30, "nothing": 0}, 4 * 2**30, "cpu")) == [
        "  memory: 3.00 GiB weights",
        "  memory: 3.00 GiB together; 4.00 GiB are free on cpu: it fits",
    ]
    assert "does NOT fit" in list(memory_lines({"weights": 5 * 2**30}, 4 * 2**30, "cpu"))[-1]


def test_the_command_says_all_of_it(folders: Path, tmp_path: Path) -> None:
    folder = folders / "gemma3"
    if not folder.exists():
        write_model(folder, "gemma3")
    small = ["train=['cd']", "unseen=[]", "twins.num_patients=40", "foundation={kind='huggingface'}"]
    options = [word for text in small for word in ("--set", text)]
    places = ["--cache", str(tmp_path), "--runs", str(tmp_path / "runs"), "--foundation", str(folder)]
    said = CliRunner().invoke(app, ["run", str(STUDY), "--dry-run", "--dtype", "float32", *options, *places])
    assert said.exit_code == 0, said.exception
    for part in ("Gemma3ForCausalLM", "weights, float32", "it fits", "injection steps on cpu", "closed questions"):
        assert part in said.output, part
    assert not (tmp_path / "runs").exists()
