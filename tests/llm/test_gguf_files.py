"""GGUF files become folders: equal to the weights they were written from, and to transformers' own loader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.errors import DiskError, StudyError
from medfed.core.progress import Reporter
from medfed.llm.checkpoints import tensor_files
from medfed.llm.foundation import load_foundation
from medfed.llm.obtain import get, gguf_files
from medfed.llm.obtain.cached import read_fingerprint
from medfed.llm.obtain.get import convert_file
from medfed.llm.obtain.gguf_tokenizers import CHECKED
from medfed.study.foundation import HuggingFaceSettings
from support.made_gguf import ARCHITECTURES, SPECIAL, TEMPLATE, TIED, Made, write_gguf

QUIET = Reporter.silent()


def converted(made: Made, folder: Path) -> dict[str, torch.Tensor]:
    convert_file(made.file, folder, QUIET)
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).state_dict()


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_file_gives_the_weights_that_it_was_written_from(family: str, tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", family)
    found = converted(made, tmp_path / "out")
    assert found.keys() - made.weights.keys() == ({"lm_head.weight"} if family in TIED else set())
    for name, value in made.weights.items():  # a norm plus one, minus one, is rounded
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.F16])
def test_tensors_equal_those_of_transformers_own_loader(
    family: str, kind: GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "_VALUES_AT_ONCE", 100)  # a few rows at a time
    monkeypatch.setattr(gguf_files, "_SHARD_BYTES", 20_000)
    made = write_gguf(tmp_path / "made.gguf", family, kind=kind)
    found = converted(made, tmp_path / "out")
    assert len(set(tensor_files(tmp_path / "out").values())) > 2
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="made.gguf", dtype=torch.float32).state_dict()
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value), name
    if kind != GGMLQuantizationType.F16:
        name = "model.layers.1.self_attn.v_proj.weight"
        rounded = dequantize(quantize(made.weights[name].numpy(), kind), kind)
        assert not np.array_equal(rounded, made.weights[name])
        assert np.array_equal(rounded, found[name])


def test_an_output_layer_equal_to_the_embedding_is_tied_and_another_is_kept(tmp_path: Path) -> None:
    for name, same in (("same", True), ("other", False)):
        made = write_gguf(tmp_path / f"{name}.gguf", "qwen2", output_is_embedding=same)
        converted(made, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["tie_word_embeddings"] is same
        assert ("lm_head.weight" in tensor_files(tmp_path / name)) is not same
        record = read_fingerprint(tmp_path / name)
        assert record is not None
        assert record.tied is same
    sizes = [read_fingerprint(tmp_path / name).num_parameters for name in ("same", "other")]  # type: ignore[union-attr]
    assert sizes[1] - sizes[0] == made.weights["lm_head.weight"].numel()


def test_weights_are_written_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "qwen2")
    found = CliRunner().invoke(app, ["convert", str(made.file), str(tmp_path / "out"), "--dtype", "bfloat16"])
    assert found.exit_code == 0, found.exception
    assert found.stdout == f"{tmp_path / 'out'}\n"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, value in made.weights.items():
        assert torch.equal(model.state_dict()[name], value.to(torch.bfloat16)), name
    refused = CliRunner().invoke(app, ["convert", str(made.file), str(tmp_path / "no"), "--dtype", "int8"])
    assert isinstance(refused.exception, StudyError)
    assert "float32 or bfloat16" in str(refused.exception)


def test_tokenizer_template_and_all_ends_of_an_answer_come_along(tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "qwen2")
    convert_file(made.file, tmp_path / "out", QUIET)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in CHECKED:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("is the")) == ["is", "Ġthe"]
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")  # composed first, as Qwen's own does
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    assert tokenizer.encode("<|im_start|>") == [ids["<|im_start|>"]]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "is"}], tokenize=False) == (
        "<|im_start|>is<|im_end|>"
    )
    assert tokenizer.chat_template == TEMPLATE
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [ids["<|im_end|>"], ids["<|endoftext|>"]]
    assert generation["pad_token_id"] == ids["<|endoftext|>"]


def test_digits_stand_alone_before_words_are_split_where_the_file_says_so(tmp_path: Path) -> None:
    convert_file(write_gguf(tmp_path / "made.gguf", "llama").file, tmp_path / "out", QUIET)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    cut = [part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert cut == ["a", "ĠĠ", "1", "2"]


def test_a_converted_folder_is_a_foundation(tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "gemma2")
    convert_file(made.file, tmp_path / "out", QUIET)
    loaded = load_foundation(HuggingFaceSettings(dtype="float32"), cache=tmp_path, path=tmp_path / "out")
    record = read_fingerprint(tmp_path / "out")
    assert record is not None
    assert loaded.info["sha256"] == record.sha256
    assert (record.licence, record.source, record.name) == ("apache-2.0", str(made.file), None)
    assert record.versions.keys() == {"medfed", "gguf", "safetensors", "tokenizers", "torch", "transformers"}
    assert record.num_parameters == sum(value.numel() for value in loaded.model.parameters())


def _without(name: str):
    return lambda stored, values: None if stored == name else values


def _with(name: str, change):
    return lambda stored, values: change(values) if stored == name else values


def _one_nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flat[7] = np.nan
    return values


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("blk.1.attn_q.bias"), "is missing"),
        (_with("blk.1.ffn_up.weight", lambda values: values[:-1]), "its shape is (63, 32)"),
        (_with("output_norm.weight", _one_nan), "not all of it is finite"),
        (_with("blk.0.ffn_down.weight", _one_nan), "not all of it is finite"),
    ],
)
def test_a_wrong_tensor_is_named_and_nothing_is_left(spoil: object, words: str, tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "qwen2", spoil=spoil)
    with pytest.raises(StudyError, match="tensor") as caught:
        convert_file(made.file, tmp_path / "out", QUIET)
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["made.gguf"]


def test_a_tensor_that_would_be_lost_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_gguf(tmp_path / "made.gguf", "qwen2")
    names = gguf_files.get_gguf_hf_weights_map

    def fewer(*given: object) -> dict[str, str]:
        return {name: value for name, value in names(*given).items() if name != "blk.0.attn_k.bias"}

    monkeypatch.setattr(gguf_files, "get_gguf_hf_weights_map", fewer)
    with pytest.raises(StudyError, match=r"blk\.0\.attn_k\.bias.*none of those that transformers reads"):
        convert_file(made.file, tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("blk.1.attn_q.weight"), "missing keys"),
        (_with("blk.1.ffn_up.weight", _one_nan), "not all of it is finite"),
    ],
)
def test_what_transformers_loads_whole_is_checked_too(spoil: object, words: str, tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "lfm2", spoil=spoil)
    with pytest.raises(StudyError, match=words):
        convert_file(made.file, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6, 0.999])
def test_a_cut_file_is_refused(kept: float, tmp_path: Path) -> None:
    made = write_gguf(tmp_path / "made.gguf", "qwen2")
    content = made.file.read_bytes()
    made.file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(StudyError, match="not a whole GGUF file"):
        convert_file(made.file, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_other_files_and_taken_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no GGUF, but long enough to look for its header")
    with pytest.raises(StudyError, match="not a whole GGUF file"):
        convert_file(tmp_path / "text", tmp_path / "out", QUIET)
    made = write_gguf(tmp_path / "made.gguf", "qwen2")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StudyError, match="the folder exists"):
        convert_file(made.file, tmp_path / "taken", QUIET)
    monkeypatch.setattr(get.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DiskError, match="1,000 are free"):
        convert_file(made.file, tmp_path / "out", QUIET)


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "made.gguf", "rwkv6")
    writer.add_name("made")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(StudyError, match=r"the architecture 'rwkv6': .*not supported"):
        convert_file(tmp_path / "made.gguf", tmp_path / "out", QUIET)
