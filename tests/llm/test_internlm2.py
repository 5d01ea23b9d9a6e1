"""InternLM2 as a Llama: equal logits to a plain InternLM2 forward, equal ids to SentencePiece, whole or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from medfed.core.errors import StudyError
from medfed.llm import checkpoints as shards
from medfed.llm import internlm2
from medfed.llm.foundation import load_foundation
from medfed.llm.internlm2 import convert
from medfed.study.foundation import HuggingFaceSettings

WORDS, WIDTH, WIDE, LAYERS, HEADS, KV = 300, 32, 40, 3, 8, 2
HEAD = WIDTH // HEADS
CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    "model_type": "internlm2",
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "hidden_act": "silu",
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000,
    "bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SENTENCES = (
    "Is the patient COVID-19 positive? Answer: Yes",
    "the heart is not enlarged; no pleural effusion is seen.",
    "  two blanks,  and ünïcödé: 肺炎 ✓ \n a new line\tand a tab",
    "",
    " ",
    "x",
)


def weights(config: dict[str, object]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.3

    made = {"model.tok_embeddings.weight": drawn(WORDS, WIDTH), "model.norm.weight": 1 + drawn(WIDTH)}
    if not config["tie_word_embeddings"]:
        made["output.weight"] = drawn(WORDS, WIDTH)
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        made |= {
            f"{layer}.attention.wqkv.weight": drawn((HEADS + 2 * KV) * HEAD, WIDTH),
            f"{layer}.attention.wo.weight": drawn(WIDTH, WIDTH),
            f"{layer}.feed_forward.w1.weight": drawn(WIDE, WIDTH),
            f"{layer}.feed_forward.w2.weight": drawn(WIDTH, WIDE),
            f"{layer}.feed_forward.w3.weight": drawn(WIDE, WIDTH),
            f"{layer}.attention_norm.weight": 1 + drawn(WIDTH),
            f"{layer}.ffn_norm.weight": 1 + drawn(WIDTH),
        }
        if config["bias"]:
            made[f"{layer}.attention.wqkv.bias"] = drawn((HEADS + 2 * KV) * HEAD)
            made[f"{layer}.attention.wo.bias"] = drawn(WIDTH)
    return made


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece BPE, as InternLM2's: bytes for what it does not know, blanks kept, a dummy prefix."""
    folder = tmp_path_factory.mktemp("pieces")
    text = folder / "text.txt"
    text.write_text("\n".join([*SENTENCES[:2], "of a patient with a lung opacity", "Question: is it a heart?"] * 9))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=WORDS,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        pad_id=-1,
        character_coverage=0.99,
        user_defined_symbols=["[UNUSED_TOKEN_0]"],
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def checkpoint(folder: Path, pieces: Path, **changes: object) -> Path:
    """Write an InternLM2 checkpoint in two shards with an index, a layer torn apart between them."""
    folder.mkdir()
    config = CONFIG | changes
    tensors = weights(config)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in halves.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    places = {name: file for file, own in halves.items() for name in own}
    (folder / shards.INDEX).write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(pieces.read_bytes())
    settings = {"tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    settings["added_tokens_decoder"] = {"3": {"content": "<|im_end|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def plain_internlm2(tensors: dict[str, Tensor], config: dict[str, object], ids: Tensor) -> Tensor:
    """Slow oracle: InternLM2's forward pass as its paper and its published layout have it, position by position."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return weight * x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt()

    scaling = config.get("rope_scaling") or {"type": "none", "factor": 1.0}
    base, length = float(config["rope_theta"]), len(ids)
    if scaling["type"] == "dynamic" and length > config["max_position_embeddings"]:
        grown = scaling["factor"] * length / config["max_position_embeddings"] - (scaling["factor"] - 1)
        base *= grown ** (HEAD / (HEAD - 2))
    stretch = scaling["factor"] if scaling["type"] == "linear" else 1.0

    def turned(x: Tensor, position: int) -> Tensor:
        half, out = HEAD // 2, x.clone()
        for k in range(half):
            angle = position / stretch * base ** (-2 * k / HEAD)
            out[k] = x[k] * math.cos(angle) - x[k + half] * math.sin(angle)
            out[k + half] = x[k + half] * math.cos(angle) + x[k] * math.sin(angle)
        return out

    def attention(x: Tensor, layer: str) -> Tensor:
        fused = F.linear(x, tensors[f"{layer}.wqkv.weight"], tensors.get(f"{layer}.wqkv.bias"))
        outputs = torch.zeros(length, HEADS, HEAD)
        group = HEADS // KV
        for head in range(HEADS):
            start = (head // group) * (group + 2) * HEAD
            at = start + (head % group) * HEAD
            query = torch.stack([turned(fused[t, at : at + HEAD], t) for t in range(length)])
            key_at = start + group * HEAD
            key = torch.stack([turned(fused[t, key_at : key_at + HEAD], t) for t in range(length)])
            value = fused[:, key_at + HEAD : key_at + 2 * HEAD]
            for t in range(length):
                look = (key[: t + 1] @ query[t] / math.sqrt(HEAD)).softmax(0)
                outputs[t, head] = look @ value[: t + 1]
        return F.linear(outputs.flatten(1), tensors[f"{layer}.wo.weight"], tensors.get(f"{layer}.wo.bias"))

    hidden = tensors["model.tok_embeddings.weight"][ids]
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        hidden = hidden + attention(norm(hidden, tensors[f"{layer}.attention_norm.weight"]), f"{layer}.attention")
        x, mlp = norm(hidden, tensors[f"{layer}.ffn_norm.weight"]), f"{layer}.feed_forward"
        gate, up = x @ tensors[f"{mlp}.w1.weight"].T, x @ tensors[f"{mlp}.w3.weight"].T
        hidden = hidden + (gate * gate.sigmoid() * up) @ tensors[f"{mlp}.w2.weight"].T
    head = tensors.get("output.weight", tensors["model.tok_embeddings.weight"])
    return norm(hidden, tensors["model.norm.weight"]) @ head.T


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": True, "tie_word_embeddings": True},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ],
    ids=["plain", "bias-tied", "dynamic", "linear"],
)
def test_the_converted_llama_has_the_logits_of_internlm2(
    tmp_path: Path, pieces: Path, changes: dict[str, object]
) -> None:
    source = checkpoint(tmp_path / "internlm2", pieces, **changes)
    convert(source, tmp_path / "llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    config = CONFIG | changes
    for length in (7, 24):  # below and above max_position_embeddings, where dynamic scaling begins
        ids = torch.randint(0, WORDS, (length,), generator=torch.Generator().manual_seed(length))
        expected = plain_internlm2(weights(config), config, ids)
        torch.testing.assert_close(model(ids.unsqueeze(0)).logits[0], expected, atol=1e-5, rtol=1e-5)


def test_the_converted_folder_is_a_foundation(tmp_path: Path, pieces: Path) -> None:
    convert(checkpoint(tmp_path / "internlm2", pieces), tmp_path / "llama")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) == 1 + LAYERS
    found = load_foundation(HuggingFaceSettings(dtype="float32"), cache=tmp_path, path=tmp_path / "llama")
    assert (found.width, found.tokenizer.starts, found.tokenizer.eos) == (WIDTH, (1,), 2)
    assert sum(value.numel() for value in found.model.parameters()) == sum(v.numel() for v in weights(CONFIG).values())


@pytest.mark.parametrize("ready", [False, True], ids=["from tokenizer.model", "from tokenizer.json"])
def test_the_tokenizer_writes_what_sentencepiece_writes(tmp_path: Path, pieces: Path, ready: bool) -> None:
    source = checkpoint(tmp_path / "internlm2", pieces)
    convert(source, tmp_path / "llama")
    if ready:
        (source / "tokenizer.json").write_bytes((tmp_path / "llama" / "tokenizer.json").read_bytes())
        (source / "tokenizer.model").unlink()
        convert(source, tmp_path / "again")
    made = AutoTokenizer.from_pretrained(tmp_path / ("again" if ready else "llama"))
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    for text in SENTENCES:
        ids = made.encode(text, add_special_tokens=False)
        assert ids == oracle.encode(text), text
        assert made.decode(ids) == oracle.decode(ids), text
    assert made.encode("a<|im_end|>", add_special_tokens=False)[-1] == 3, "a reserved piece under its given name"


def lose(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.feed_forward.w3.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.1.feed_forward.w4.weight"] = torch.zeros(2)


def cut(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.2.attention.wqkv.weight"] = torch.zeros(5, WIDTH)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose, r"layers\.1\.feed_forward\.w3\.weight': is missing"),
        (add, r"layers\.1\.feed_forward\.w4\.weight': is no tensor"),
        (cut, r"layers\.2\.attention\.wqkv\.weight': its shape is \(5, 32\), and config.json says \(48, 32\)"),
    ],
)
def test_a_wrong_tensor_is_named(
    tmp_path: Path, pieces: Path, harm: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    source = checkpoint(tmp_path / "internlm2", pieces)
    files = list(source.glob("*.safetensors"))
    tensors = {name: value for file in files for name, value in load_file(file).items()}
    for path in (*files, source / shards.INDEX):
        path.unlink()
    harm(tensors)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(StudyError, match=message):
        convert(source, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()


def test_what_cannot_be_converted_is_refused(tmp_path: Path, pieces: Path) -> None:
    with pytest.raises(StudyError, match="only 'internlm2'"):
        convert(checkpoint(tmp_path / "other", pieces, model_type="llama"), tmp_path / "out")
    with pytest.raises(StudyError, match="knows 'linear' and 'dynamic'"):
        convert(checkpoint(tmp_path / "yarn", pieces, rope_scaling={"type": "yarn", "factor": 2}), tmp_path / "out")
    source = checkpoint(tmp_path / "pickled", pieces)
    for path in source.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(StudyError, match="pickled"):
        convert(source, tmp_path / "out")
    with pytest.raises(StudyError, match="the folder exists"):
        convert(source, source)
    torn = checkpoint(tmp_path / "torn", pieces)
    (torn / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(StudyError, match="does not hold it"):
        convert(torn, tmp_path / "out")


def test_a_killed_conversion_leaves_nothing(tmp_path: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path / "internlm2", pieces)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(internlm2, "convert_tokenizer", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out" / "llama")
    assert list((tmp_path / "out").iterdir()) == []
