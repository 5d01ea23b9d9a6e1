"""Loading an LLM from disk: every weight is there, none is foreign, all are numbers; and the dtype that ``auto`` is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from medfed.core.errors import StudyError
from medfed.data.sources import Sources
from medfed.llm import precision
from medfed.llm.foundation import load_foundation
from medfed.llm.precision import chosen
from medfed.runs.context import RunPaths, folder_of, settled
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import load_study
from support.llm_toys import write_model, write_wrapped

STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
KINDS = ["qwen2", "llama", "gemma"]
NAMED = "model.layers.1.mlp.up_proj.weight"
PLAIN = HuggingFaceSettings(dtype="float32")


def without(weights: dict[str, Tensor]) -> None:
    del weights[NAMED]


def with_more(weights: dict[str, Tensor]) -> None:
    weights["model.layers.1.mlp.side_proj.weight"] = torch.ones(2)


def narrower(weights: dict[str, Tensor]) -> None:
    weights[NAMED] = weights[NAMED][:, :-1].contiguous()


def infinite(weights: dict[str, Tensor]) -> None:
    weights[NAMED][3, 5] = -torch.inf


def no_number(weights: dict[str, Tensor]) -> None:
    weights[NAMED][3, 5] = torch.nan


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, f"is missing: {NAMED}"),
        (with_more, "belongs to no layer: model.layers.1.mlp.side_proj.weight"),
        (narrower, f"has another shape: {NAMED}"),
        (infinite, f"not a finite number: {NAMED}"),
        (no_number, f"not a finite number: {NAMED}"),
    ],
)
def test_a_wrong_weight_stops_loading(
    family: str, dtype: str, change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, family)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudyError) as caught:
        load_foundation(HuggingFaceSettings.model_validate({"dtype": dtype}), cache=tmp_path, path=folder)
    assert message in str(caught.value)


def test_tied_layers_and_a_picture_tower_are_not_missing(tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied", "llama")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load_foundation(PLAIN, cache=tmp_path, path=tied)
    load_foundation(PLAIN, cache=tmp_path, path=write_wrapped(tmp_path / "wrapped"))


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize(
    ("seconds", "dtype"), [((1.0, 0.4), "bfloat16"), ((1.0, 0.95), "float32"), ((1.0, 5.0), "float32")]
)
def test_the_faster_dtype_is_taken_and_kept(
    family: str, seconds: tuple[float, float], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tried = write_model(tmp_path / "llm", family), []

    def taken(*sizes: object) -> dict[str, float]:
        tried.append(sizes)
        return dict(zip(("float32", "bfloat16"), seconds, strict=True))

    monkeypatch.setattr(precision, "_seconds", taken)
    foundation = load_foundation(HuggingFaceSettings(), cache=tmp_path, path=folder)
    assert foundation.table.dtype == getattr(torch, dtype)
    assert foundation.info["dtype"] == dtype
    assert tried == [(32, 48, "cpu")]

    monkeypatch.setattr(precision, "_seconds", lambda *_: pytest.fail("tried again"))
    paths = RunPaths(tmp_path, tmp_path, foundation=folder)
    study, facts = settled(load_study(STUDY, ["foundation.kind=huggingface"]), paths)
    assert study.resolved()["foundation"]["dtype"] == dtype
    assert facts["dtype_trial"]["seconds"] == {"float32": seconds[0], "bfloat16": seconds[1]}
    said = load_study(STUDY, ["foundation.kind=huggingface", f"foundation.dtype={dtype}"])
    assert folder_of(study, paths, Sources({}, {})) == folder_of(said, paths, Sources({}, {}))
    assert settled(said, paths) == (said, {})


def test_a_trial_measures_both_and_leaves_its_answer_in_the_cache(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llm", "qwen2", hidden_size=256, intermediate_size=512)
    made = chosen(folder, tmp_path)
    assert made.widths == (256, 512)
    assert all(0 < value < 2 for value in made.seconds.values())
    (kept,) = (tmp_path / "precision").iterdir()
    assert json.loads(kept.read_text(encoding="utf-8"))["dtype"] == made.dtype
    kept.write_text("{}", encoding="utf-8")
    assert chosen(folder, tmp_path).seconds.keys() == {"float32", "bfloat16"}, "a damaged answer is found anew"


def test_4_bit_weights_leave_bfloat16_to_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda *_: pytest.fail("nothing to try"))
    decided = precision.decided(HuggingFaceSettings(load_in_4bit=True), tmp_path, tmp_path)
    assert decided.dtype == "bfloat16"
