"""Turn the weights of InternLM2 (MMedLM 2, the LLM of the FedKIM paper) into those of the same LLM as a Llama.

InternLM2 (Cai et al. 2024, Sec. 2.1) is a Llama under other names, with one difference: queries, keys and values of a
layer are one matrix ``wqkv``, whose rows stand by key-value head: first the queries of its group, then the key, then
the value. Transformers has no InternLM2 of its own, so its checkpoints run code of theirs; as a Llama they do not.

The folder is read and written offline, safetensors alone, a layer at a time, and appears whole or not at all.

The tokenizer of an InternLM2 checkpoint as a ``tokenizer.json``, which needs no code of its own.

InternLM2 ships a SentencePiece BPE model (``tokenizer.model``) and Python code around it. What the code adds is in its
settings: names for reserved pieces (``added_tokens_decoder``), and which tokens begin and end a text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from medfed.core.diagnosis import installing
from medfed.core.errors import StudyError
from medfed.llm.checkpoints import INDEX, Shards

OUTSIDE = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

WITHIN = {
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}

FUSED = "attention.wqkv"
DERIVED = "rotary_emb.inv_freq"
"""Old checkpoints carry what follows from the configuration."""


def convert(source: Path, out: Path) -> None:
    """Write the InternLM2 checkpoint in ``source`` to the new folder ``out`` as a Llama, tokenizer included.

    Raises:
        StudyError: ``source`` is no InternLM2, holds pickled weights only, lacks a tensor, has one too many or one of
            another shape; or ``out`` exists.
    """
    if out.exists():
        raise StudyError("the folder exists", where=out, hint="choose another one, or remove it")
    config = _llama_config(source)
    shards = Shards(source)
    _check(shards, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    try:
        _write(shards, config, partial)
        convert_tokenizer(source, partial)
        config.dtype = shards.dtype
        config.save_pretrained(partial)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _llama_config(source: Path) -> LlamaConfig:
    path = source / "config.json"
    if not path.is_file():
        raise StudyError("not the folder of an LLM: it has no config.json", where=source, hint="name its folder")
    given = json.loads(path.read_text(encoding="utf-8"))
    if given.get("model_type") != "internlm2":
        raise StudyError(
            f"its model_type is {given.get('model_type')!r}, and only 'internlm2' needs converting",
            where=path,
            hint="pass the folder to --foundation as it is",
        )
    if missing := [key for key in _NEEDED if key not in given]:
        raise StudyError(f"it does not say {missing[0]!r}", where=path, hint="fetch the configuration again")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        attention_bias=given.get("bias", True),
        mlp_bias=False,
        rope_parameters=_rope(given, path),
        tie_word_embeddings=given.get("tie_word_embeddings", False),
        num_key_value_heads=given.get("num_key_value_heads") or given["num_attention_heads"],
        **{key: given[key] for key in _SAME if key in given},
    )


_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_SAME = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "rms_norm_eps",
    "vocab_size",
)
"""Settings of the same name and meaning."""


def _rope(given: dict[str, Any], path: Path) -> dict[str, Any]:
    theta, scaling = float(given.get("rope_theta", 10000)), given.get("rope_scaling")
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("linear", "dynamic"):
        raise StudyError(
            f"rope_scaling of the type {kind!r}; InternLM2 knows 'linear' and 'dynamic'",
            where=path,
            hint="is config.json that of an InternLM2?",
        )
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling["factor"])}


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that the checkpoint must hold."""
    width, wide, words = config.hidden_size, config.intermediate_size, config.vocab_size
    rows = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (words, width), "model.norm.weight": (width,)}
    if not config.tie_word_embeddings:
        shapes["output.weight"] = (words, width)
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.{name}.weight": (width,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{layer}.{FUSED}.weight": (rows, width), f"{layer}.attention.wo.weight": (width, width)}
        shapes |= {f"{layer}.feed_forward.{name}.weight": (wide, width) for name in ("w1", "w3")}
        shapes[f"{layer}.feed_forward.w2.weight"] = (width, wide)
        if config.attention_bias:
            shapes |= {f"{layer}.{FUSED}.bias": (rows,), f"{layer}.attention.wo.bias": (width,)}
    return shapes


def _check(shards: Shards, config: LlamaConfig) -> None:
    expected, found = _shapes(config), set(shards.names)
    allowed = {"output.weight"} if config.tie_word_embeddings else set()
    extra = sorted(name for name in found - expected.keys() - allowed if not name.endswith(DERIVED))
    for names, what in ((sorted(expected.keys() - found), "is missing"), (extra, "is no tensor of an InternLM2")):
        if names:
            hint = "fetch the checkpoint again" if what == "is missing" else "is config.json that of these weights?"
            raise StudyError(f"{what} ({len(names)} such)", where=f"tensor {names[0]!r}", hint=hint)
    for name, shape in expected.items():
        if (given := shards.shape(name)) != shape:
            raise StudyError(
                f"its shape is {given}, and config.json says {shape}",
                where=f"tensor {name!r}",
                hint="is config.json that of these weights?",
            )


def _write(shards: Shards, config: LlamaConfig, folder: Path) -> None:
    """Write a file for what stands outside the layers, and one per layer, with their index."""
    places: dict[str, str] = {}
    total, count = 0, config.num_hidden_layers + 1
    for number, tensors in enumerate(_parts(shards, config), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _parts(shards: Shards, config: LlamaConfig) -> Iterator[dict[str, Tensor]]:
    tied = {"output.weight"} if config.tie_word_embeddings else set()
    yield {new: shards.read(old) for old, new in OUTSIDE.items() if old not in tied}
    for number in range(config.num_hidden_layers):
        old, new = f"model.layers.{number}", f"model.layers.{number}"
        tensors: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            for before, after in WITHIN.items():
                if (name := f"{old}.{before}.{kind}") in shards.names:
                    tensors[f"{new}.{after}.{kind}"] = shards.read(name)
            if (name := f"{old}.{FUSED}.{kind}") in shards.names:
                parts = split_fused(shards.read(name), config.num_attention_heads, config.num_key_value_heads)
                tensors |= {
                    f"{new}.self_attn.{letter}_proj.{kind}": part for letter, part in zip("qkv", parts, strict=True)
                }
        yield tensors


def split_fused(fused: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values of a fused weight or bias.

    Args:
        fused: ``[(num_heads + 2·num_kv_heads)·head_dim, …]``; by key-value head the queries of its group, key, value.
        num_heads: of queries.
        num_kv_heads: of keys and of values.
    """
    per_group = num_heads // num_kv_heads
    rows = fused.reshape(num_kv_heads, per_group + 2, -1, *fused.shape[1:])
    parts = rows[:, :per_group], rows[:, per_group : per_group + 1], rows[:, per_group + 1 :]
    queries, keys, values = (part.flatten(0, 2).contiguous() for part in parts)
    return queries, keys, values


MODEL, READY, SETTINGS = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
BPE_TYPE, CONTROL, USER_DEFINED = 2, 3, 4
"""SentencePiece's numbers."""


def convert_tokenizer(source: Path, out: Path) -> None:
    """Write the tokenizer of ``source`` to the folder ``out``; a ``tokenizer.json`` is taken where there is one.

    Raises:
        StudyError: there is no tokenizer, it is no BPE, or protobuf, which reads it, is not installed.
    """
    path = source / SETTINGS
    given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made = Tokenizer.from_file(str(source / READY)) if (source / READY).is_file() else _from_pieces(source, given)
    names = {key: _text(given.get(key) or default) for key, default in _SPECIAL.items()}
    known = {key: name for key, name in names.items() if made.token_to_id(name) is not None}
    PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **known).save_pretrained(out)


_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
"""InternLM2's own defaults."""


def _text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _from_pieces(source: Path, given: dict[str, Any]) -> Tokenizer:
    path = source / MODEL
    if not path.is_file():
        raise StudyError(f"no {READY} and no {MODEL}", where=source, hint="fetch the tokenizer's files too")
    proto = _proto(path)
    if proto.trainer_spec.model_type != BPE_TYPE:
        raise StudyError("not a BPE model", where=path, hint=f"InternLM2's is one; give the folder a {READY}")
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = generate_merges(pieces, {piece.piece: piece.score for piece in proto.pieces})
    renamed = {int(number): token for number, token in given.get("added_tokens_decoder", {}).items()}
    vocabulary = {_text(renamed[n]) if n in renamed else piece: n for piece, n in pieces.items()}
    unknown = proto.trainer_spec.unk_piece
    fallback = bool(proto.trainer_spec.byte_fallback)
    merges = [pair for pair in merges if all(part in vocabulary for part in (*pair, "".join(pair)))]
    made = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    made.normalizer = _normalizer(proto.normalizer_spec)
    made.decoder = _decoder(stripped=proto.normalizer_spec.add_dummy_prefix)
    special = [piece.piece for n, piece in enumerate(proto.pieces) if piece.type == CONTROL and n not in renamed]
    plain = [piece.piece for n, piece in enumerate(proto.pieces) if piece.type == USER_DEFINED and n not in renamed]
    made.add_special_tokens([AddedToken(name, normalized=False) for name in [unknown, *special]])
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in plain])
    for _, token in sorted(renamed.items()):
        made.add_special_tokens([AddedToken(_text(token), normalized=False)])
    return made


def _proto(path: Path) -> Any:
    """Parse a SentencePiece model, by the message classes that transformers carries."""
    if find_spec("google") is None or find_spec("google.protobuf") is None:
        raise StudyError("reading it needs protobuf", where=path, hint=installing("convert"))
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415
    from transformers.utils import sentencepiece_model_pb2_new as messages  # noqa: PLC0415

    try:
        return messages.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise StudyError("not a SentencePiece model", where=path, hint="fetch it again") from error


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """Return SentencePiece's steps: its character map, blanks, the dummy prefix, and the visible blank."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def _decoder(*, stripped: bool) -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if stripped else [])])
