"""How a foundation is loaded: pinned by its checksum, in 4 bits, placed by a device map, by options of the command."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.errors import StudyError
from medfed.data.sources import Sources
from medfed.injection.inject import Injector
from medfed.llm import huggingface
from medfed.llm.checkpoints import foundation_checksum
from medfed.llm.foundation import load_foundation
from medfed.runs.context import RunPaths, folder_of
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import foundation_overrides, load_study
from support.llm_toys import BOTH, IMAGE, examples, federated_model, public, settings, write_model

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
"""Whole blocks of 64 for the quantisation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama", **WIDE)


def test_the_checksum_is_that_of_sha256sum(folder: Path) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert foundation_checksum(folder) == expected
    printed = CliRunner().invoke(app, ["foundation", str(folder)]).output
    assert printed.replace("\n", "") == f"{expected}  {' '.join(names)}"


def test_a_pinned_foundation_loads_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    pinned = HuggingFaceSettings(dtype="float32", sha256=foundation_checksum(folder))
    assert load_foundation(pinned, cache=tmp_path, path=folder).info["sha256"] == pinned.sha256
    other = write_model(tmp_path / "other", "llama", **WIDE, rope_theta=20000.0)
    with pytest.raises(StudyError) as caught:
        load_foundation(pinned, cache=tmp_path, path=other)
    for part in ("config.json, model.safetensors, tokenizer.json", pinned.sha256, foundation_checksum(other)):
        assert part in str(caught.value)


def test_a_pinned_foundation_may_lie_anywhere(tmp_path: Path) -> None:
    def place(where: str, *overrides: str) -> Path:
        study = load_study(STUDY, ["foundation.kind=huggingface", *overrides])
        return folder_of(study, RunPaths(tmp_path, tmp_path, foundation=tmp_path / where), Sources({}, {}))

    assert place("here") != place("there")
    sums = [f"foundation.sha256={letter * 64}" for letter in "ab"]
    assert place("here", sums[0]) == place("there", sums[0])
    assert place("here", sums[0]) != place("here", sums[1])


def test_the_options_stand_for_settings() -> None:
    overrides = ["foundation.kind=huggingface", *foundation_overrides("float16", True, "cuda:0")]
    wanted = HuggingFaceSettings(dtype="float16", load_in_4bit=True, device_map="cuda:0")
    assert load_study(STUDY, overrides).foundation == wanted
    assert foundation_overrides(None, False, None) == []


@pytest.mark.parametrize("option", [["--dtype", "float16"], ["--load-in-4bit"], ["--device-map", "auto"]])
def test_the_options_are_refused_where_the_llm_is_the_tiny_one(option: list[str]) -> None:
    found = CliRunner().invoke(app, ["run", str(STUDY), "--dry-run", *option])
    assert isinstance(found.exception, StudyError)
    name = option[0].removeprefix("--").replace("-", "_")
    assert f"'{name}' is a setting of an LLM from disk, and the study's LLM is 'tiny'" in str(found.exception)


@pytest.mark.parametrize("num_experts", [3, 1])
def test_a_4_bit_foundation_trains_experts_and_scores(folder: Path, tmp_path: Path, num_experts: int) -> None:
    pytest.importorskip("bitsandbytes")
    quantised = HuggingFaceSettings(dtype="float32", load_in_4bit=True)
    foundation = load_foundation(quantised, cache=tmp_path, path=folder)
    kinds = {type(module).__name__ for module in foundation.model.modules()}
    assert "Linear4bit" in kinds
    before = foundation.fingerprint()
    own = settings(num_experts=num_experts, device="meta")  # where it must not be moved: placed is placed
    made = Injector(foundation, federated_model(), (IMAGE, BOTH), own, 0)
    batch = examples(BOTH, 4).batches(4)[0]
    first = made.score(BOTH, batch)
    assert foundation.fingerprint() == before, "scoring first, where bitsandbytes would repack"
    values = {name: value.detach().clone() for name, value in made.injected.named_parameters() if value.requires_grad}
    for _ in made.inject(public(16), 1):
        pass
    moved = {
        name for name, value in made.injected.named_parameters() if name in values and (value != values[name]).any()
    }
    assert {name for name in values if "lora_" in name} <= moved
    second = made.score(BOTH, batch)
    assert torch.isfinite(second).all()
    assert not torch.equal(first, second)
    assert foundation.fingerprint() == before


def test_a_foundation_with_a_device_map_stays_where_it_is(folder: Path, tmp_path: Path) -> None:
    placed = load_foundation(HuggingFaceSettings(dtype="float32", device_map="cpu"), cache=tmp_path, path=folder)
    plain = load_foundation(HuggingFaceSettings(dtype="float32"), cache=tmp_path, path=folder)
    assert placed.placed
    assert placed.fingerprint() == plain.fingerprint()
    assert placed.move_to("meta") == "cpu"
    batch = examples(BOTH, 4).batches(4)[0]
    scores = [
        Injector(found, federated_model(), (BOTH,), settings(), 0).score(BOTH, batch) for found in (placed, plain)
    ]
    assert torch.equal(*scores)


def test_what_is_not_installed_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "find_spec", lambda name: None if name == "bitsandbytes" else sys)
    with pytest.raises(StudyError, match=r"foundation\.load_in_4bit: it needs bitsandbytes.*\n.*pip install"):
        load_foundation(HuggingFaceSettings(load_in_4bit=True), cache=tmp_path, path=folder)
