"""GGUF files of a few kB, written as llama.cpp's converter writes them, and wheels that hold such a file in pieces."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map
from gguf.quants import quantize
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from medfed.core.torch_rng import torch_seeded
from medfed.llm.obtain.known import KnownLlm

WIDTH, HEADS, KV_HEADS, LAYERS = 32, 4, 2, 2
MERGES = ("Ġ t", "h e", "Ġt he", "i s")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
ARCHITECTURES = {
    "qwen2": MODEL_ARCH.QWEN2,
    "llama": MODEL_ARCH.LLAMA,
    "gemma2": MODEL_ARCH.GEMMA2,
    "qwen3moe": MODEL_ARCH.QWEN3MOE,
    "lfm2": MODEL_ARCH.LFM2,
}
TIED = ("gemma2", "lfm2")
NUM_EXPERTS, EXPERT_WIDTH = 2, 768
"""The width is the one that transformers takes where a file does not say it."""


class Made(NamedTuple):
    """A GGUF file, and the weights that it was written from."""

    file: Path
    weights: dict[str, Tensor]


def write_gguf(
    file: Path,
    family: str,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    tied: bool = False,
    output_is_embedding: bool = False,
    spoil: Any = None,
) -> Made:
    """Write a random LLM of a family.

    Args:
        file: the file.
        family: a key of :data:`ARCHITECTURES`.
        kind: how matrices are quantised.
        tied: the LLM has no output layer of its own; those of :data:`TIED` never have.
        output_is_embedding: it has one, equal to the embedding.
        spoil: given name and values of a tensor as they are to be written, returns others, or None to leave it out.
    """
    tied = tied or family in TIED
    size = 256 + len(MERGES) + len(SPECIAL)
    model = _model(family, size if family != "gemma2" else len(_sentencepiece()[0]), tied)
    if output_is_embedding:
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    writer = GGUFWriter(file, family)
    _write_facts(writer, model.config, family)
    (_write_sentencepiece if family == "gemma2" else _write_byte_level)(
        writer, "qwen2" if family == "qwen2" else "smollm"
    )
    names = get_tensor_name_map(ARCHITECTURES[family], LAYERS)
    weights = {name: value for name, value in model.state_dict().items() if not (tied and name == "lm_head.weight")}
    for name, value in weights.items():
        for stored, given in _in_the_file(names, name, value.numpy()):
            values = _as_llama_cpp_lays_out(family, stored, given)
            values = values if spoil is None else spoil(stored, values)
            if values is None:
                continue
            if values.ndim > 1 and values.shape[-1] % 32 == 0 and kind != GGMLQuantizationType.F32:
                writer.add_tensor(stored, quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Made(file, weights)


def _model(family: str, vocab_size: int, tied: bool) -> Any:
    special: dict[str, Any] = {"head_dim": WIDTH // HEADS} if family not in ("qwen2", "lfm2") else {}
    if family == "qwen3moe":
        experts = {"num_experts": NUM_EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": EXPERT_WIDTH}
        special |= experts | {"norm_topk_prob": True}
    if family == "lfm2":
        special |= {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}
    config = AutoConfig.for_model(
        "qwen3_moe" if family == "qwen3moe" else family,
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        **special,
    )
    with torch_seeded("made", family):
        model = AutoModelForCausalLM.from_config(config)
        for value in model.parameters():
            value.data += 0.1 * torch.randn_like(value)  # norms and biases too
    return model


def _write_facts(writer: GGUFWriter, config: Any, family: str) -> None:
    writer.add_name("made")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, KV_HEADS] if family == "lfm2" else KV_HEADS)
    writer.add_layer_norm_rms_eps(config.norm_eps if family == "lfm2" else config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if family == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if family == "qwen3moe":
        writer.add_expert_count(NUM_EXPERTS)
        writer.add_expert_used_count(1)
    if family == "lfm2":
        writer.add_shortconv_l_cache(config.conv_L_cache)
    if family in ("gemma2", "qwen3moe"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family == "gemma2":
        writer.add_sliding_window(config.sliding_window)


def _write_byte_level(writer: GGUFWriter, split: str) -> None:
    tokens = [*bytes_to_unicode().values(), *("".join(merge.split()) for merge in MERGES), *SPECIAL]
    types = [TokenType.NORMAL] * (len(tokens) - len(SPECIAL)) + [TokenType.CONTROL] * len(SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index(SPECIAL[1]))
    writer.add_eos_token_id(tokens.index(SPECIAL[2]))
    writer.add_pad_token_id(tokens.index(SPECIAL[0]))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _sentencepiece() -> tuple[list[str], list[TokenType]]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    raw = [f"<0x{number:02X}>" for number in range(256)]
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz", "th", "the", "▁the"]
    types = [TokenType.CONTROL] * len(special) + [TokenType.BYTE] * len(raw) + [TokenType.NORMAL] * len(words)
    return [*special, *raw, *words], types


def _write_sentencepiece(writer: GGUFWriter, _: str) -> None:
    tokens, types = _sentencepiece()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _in_the_file(names: Any, name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield llama.cpp's name and the values; the experts of a layer are apart in gate and up, and have no suffix."""
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("experts.gate_up_proj"):
        for part, some in zip(("gate", "up"), np.split(values, 2, axis=1), strict=True):
            yield f"blk.{layer}.ffn_{part}_exps.weight", np.ascontiguousarray(some)
    elif name.endswith("experts.down_proj"):
        yield f"blk.{layer}.ffn_down_exps.weight", values
    else:
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), values


def _as_llama_cpp_lays_out(family: str, name: str, values: np.ndarray) -> np.ndarray:
    """Undo nothing, do what its converter does: queries and keys of a Llama interleaved, norms of a Gemma plus one."""
    if family == "gemma2" and "norm" in name:
        return values + 1
    if family == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = HEADS if ".attn_q." in name else KV_HEADS
        split = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
    if "shortconv.conv" in name:
        return np.ascontiguousarray(values[:, 0])
    return values


def known_as(file: Path, num_pieces: int, **changes: Any) -> KnownLlm:
    """Return what would be known of ``file``, if packages had it in pieces."""
    pieces = _cut(file.read_bytes(), num_pieces)
    facts = {
        "title": "Made, F32",
        "licence": "Apache-2.0",
        "num_parameters": 30_000,
        "dtype": "float32",
        "num_bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "hub": {"repository": "nobody/made-gguf", "revision": "main", "file": "made.gguf"},
        "packages": {
            "name": "made-part{number}",
            "version": "1.0",
            "member": "made_part{number}/data/part{number:02d}.bin",
            "pieces": [hashlib.sha256(piece).hexdigest() for piece in pieces],
        },
    }
    return KnownLlm.model_validate(facts | changes)


def write_wheels(file: Path, folder: Path, known: KnownLlm) -> list[Path]:
    """Write the wheels that hold ``file`` in pieces, stored without compression."""
    folder.mkdir(exist_ok=True)
    wheels = []
    for number, piece in enumerate(_cut(file.read_bytes(), len(known.packages.pieces)), 1):
        wheels.append(folder / f"made_part{number}-1.0-py3-none-any.whl")
        with zipfile.ZipFile(wheels[-1], "w") as archive:
            archive.writestr(f"made_part{number}/__init__.py", "raise RuntimeError('nothing of it is to be run')\n")
            archive.writestr(known.packages.path(number), piece)
    return wheels


def _cut(content: bytes, count: int) -> list[bytes]:
    step = -(-len(content) // count)
    return [content[start : start + step] for start in range(0, len(content), step)]
