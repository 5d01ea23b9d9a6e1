"""Turn the weights of InternLM2 (MMedLM 2, the LLM of the FedKIM paper) into those of the same LLM as a Llama.

InternLM2 (Cai et al. 2024, Sec. 2.1) is a Llama under other names, but for one matrix ``wqkv`` per layer. Its rows are
grouped by key-value head: the queries of its group, the key, the value. Transformers has no InternLM2 of its own, so
its checkpoints run code of theirs; as a Llama they do not.

The tokenizer is a SentencePiece BPE model (``tokenizer.model``) with Python code around it. The code only adds its
settings: names for reserved pieces (``added_tokens_decoder``), and the tokens that begin and end a text. It becomes a
``tokenizer.json``, which needs no code.

Folders are read and written offline, safetensors alone, a layer at a time. The new one appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from medfed.core.diagnosis import installing
from medfed.core.errors import StudyError
from medfed.core.files import written_whole
from medfed.llm.checkpoints import INDEX, tensor_files

_FUSED = "attention.wqkv"
_OLD_NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), _FUSED),
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
"""Llama's name of a module → InternLM2's."""

_DERIVED = "rotary_emb.inv_freq"
"""Old checkpoints also hold tensors that follow from the configuration."""

_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAME = (*_NEEDED, *_TOKENS, "hidden_act", "initializer_range", "max_position_embeddings", "rms_norm_eps")
"""Settings of the same name and meaning."""

_MODEL, _READY, _SETTINGS = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"

_SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
"""InternLM2's own defaults."""

_BPE, _CONTROL, _USER_DEFINED = 2, 3, 4
"""SentencePiece's numbers."""


def convert(source: Path, out: Path) -> None:
    """Write the InternLM2 checkpoint in ``source`` to the new folder ``out`` as a Llama, tokenizer included.

    Raises StudyError if ``source`` is no InternLM2, holds pickled weights only, lacks a tensor, or has one too many or
    of another shape. ``out`` must not exist.
    """
    if out.exists():
        raise StudyError("the folder exists", where=out, hint="choose another one, or remove it")
    config = _llama_config(source)
    files = tensor_files(source)
    names = _checked_names(files, config)
    with written_whole(out, sum(path.stat().st_size for path in set(files.values()))) as partial:
        partial.mkdir()
        _write_weights(files, config, names, partial)
        convert_tokenizer(source, partial)
        config.dtype = str(_read(files, min(files)).dtype).removeprefix("torch.")
        config.save_pretrained(partial)


def _llama_config(source: Path) -> LlamaConfig:
    path = source / "config.json"
    if not path.is_file():
        raise StudyError("not the folder of an LLM: it has no config.json", where=source, hint="name its folder")
    given = json.loads(path.read_text(encoding="utf-8"))
    if (kind := given.get("model_type")) != "internlm2":
        what = f"its model_type is {kind!r}, and only 'internlm2' needs converting"
        raise StudyError(what, where=path, hint="pass the folder to --foundation as it is")
    if missing := [key for key in _NEEDED if key not in given]:
        raise StudyError(f"it lacks {missing[0]!r}", where=path, hint="fetch the configuration again")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        attention_bias=given.get("bias", True),
        mlp_bias=False,
        rope_parameters=_rope(given, path),
        tie_word_embeddings=given.get("tie_word_embeddings", False),
        num_key_value_heads=given.get("num_key_value_heads") or given["num_attention_heads"],
        **{key: given[key] for key in _SAME if key in given},
    )


def _rope(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    theta, scaling = float(given.get("rope_theta", 10000)), given.get("rope_scaling")
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind not in ("linear", "dynamic"):
        what = f"rope_scaling of the type {kind!r}; InternLM2 knows 'linear' and 'dynamic'"
        raise StudyError(what, where=path, hint="is config.json that of an InternLM2?")
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling["factor"])}


def _checked_names(files: Mapping[str, Path], config: LlamaConfig) -> dict[str, list[str]]:
    """Return InternLM2's name of every tensor → Llama's, three of a fused one, if the checkpoint holds just these."""
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    optional = {"output.weight"} if config.tie_word_embeddings else set()
    names: dict[str, list[str]] = {}
    for new in tensors:
        if (old := _old_name(new)) not in optional:
            names.setdefault(old, []).append(new)
    extra = {name for name in files.keys() - names.keys() - optional if not name.endswith(_DERIVED)}
    if missing := sorted(names.keys() - files.keys()):
        hint = "fetch the checkpoint again"
        raise StudyError(f"is missing ({len(missing)} such)", where=f"tensor {missing[0]!r}", hint=hint)
    hint = "is config.json that of these weights?"
    if extra:
        what = f"is no tensor of an InternLM2 ({len(extra)} such)"
        raise StudyError(what, where=f"tensor {min(extra)!r}", hint=hint)
    for old, parts in names.items():
        expected = (sum(len(tensors[new]) for new in parts), *tensors[parts[0]].shape[1:])
        if (given := _shape(files, old)) != expected:
            what = f"its shape is {given}, and config.json says {expected}"
            raise StudyError(what, where=f"tensor {old!r}", hint=hint)
    return names


def _old_name(new: str) -> str:
    """Return ``model.layers.3.attention.wo.weight`` for ``model.layers.3.self_attn.o_proj.weight``, and so on."""
    return next((new.replace(after, before) for after, before in _OLD_NAMES.items() if after in new), new)


def _shape(files: Mapping[str, Path], name: str) -> tuple[int, ...]:
    with safe_open(files[name], "pt") as file:
        return tuple(file.get_slice(name).get_shape())


def _read(files: Mapping[str, Path], name: str) -> Tensor:
    with safe_open(files[name], "pt") as file:
        return cast(Tensor, file.get_tensor(name))


def _write_weights(
    files: Mapping[str, Path], config: LlamaConfig, names: Mapping[str, list[str]], folder: Path
) -> None:
    """Write a file for the tensors outside the layers, and one per layer, with their index."""
    places: dict[str, str] = {}
    total, count = 0, config.num_hidden_layers + 1
    for number in range(count):
        prefix = f"model.layers.{number - 1}."
        old = [name for name in names if (name.startswith(prefix) if number else ".layers." not in name)]
        tensors: dict[str, Tensor] = {}
        for name in old:
            tensors |= zip(names[name], _split(name, _read(files, name), config), strict=True)
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _split(name: str, value: Tensor, config: LlamaConfig) -> Iterator[Tensor]:
    """Yield queries, keys and values of a fused weight or bias ``[(heads + 2·kv_heads)·head_dim, …]``; else itself."""
    if _FUSED not in name:
        yield value
        return
    per_group = config.num_attention_heads // config.num_key_value_heads
    rows = value.reshape(config.num_key_value_heads, per_group + 2, -1, *value.shape[1:])
    for part in torch.split(rows, [per_group, 1, 1], 1):
        yield part.flatten(0, 2).contiguous()


def convert_tokenizer(source: Path, out: Path) -> None:
    """Write the tokenizer of ``source`` to the folder ``out``; an existing ``tokenizer.json`` is taken as it is.

    Raises StudyError if there is no tokenizer, it is no BPE, or protobuf, which reads it, is not installed.
    """
    path = source / _SETTINGS
    given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made = Tokenizer.from_file(str(source / _READY)) if (source / _READY).is_file() else _from_pieces(source, given)
    names = {key: _text(given.get(key) or default) for key, default in _SPECIAL.items()}
    known = {key: name for key, name in names.items() if made.token_to_id(name) is not None}
    if given.get("add_bos_token", True) and "bos_token" in known:  # its own code adds it
        start = str(known["bos_token"])
        special = [(start, made.token_to_id(start))]
        made.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **known).save_pretrained(out)


def _text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _from_pieces(source: Path, given: Mapping[str, Any]) -> Tokenizer:
    path = source / _MODEL
    if not path.is_file():
        raise StudyError(f"no {_READY} and no {_MODEL}", where=source, hint="fetch the tokenizer's files too")
    proto = _proto(path)
    if proto.trainer_spec.model_type != _BPE:
        raise StudyError("not a BPE model", where=path, hint=f"InternLM2's is one; give the folder a {_READY}")
    pieces = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = generate_merges(pieces, {piece.piece: piece.score for piece in proto.pieces})
    renamed = {int(number): _text(token) for number, token in given.get("added_tokens_decoder", {}).items()}
    vocabulary = {renamed.get(number, piece): number for piece, number in pieces.items()}
    merges = [pair for pair in merges if all(part in vocabulary for part in (*pair, "".join(pair)))]
    unknown, fallback = proto.trainer_spec.unk_piece, bool(proto.trainer_spec.byte_fallback)
    made = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=fallback))
    made.normalizer = _normalizer(proto.normalizer_spec)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    stripped = [decoders.Strip(" ", 1, 0)] if proto.normalizer_spec.add_dummy_prefix else []
    made.decoder = decoders.Sequence([*steps, *stripped])
    kept = [piece for number, piece in enumerate(proto.pieces) if number not in renamed]
    control = [piece.piece for piece in kept if piece.type == _CONTROL]
    plain = [piece.piece for piece in kept if piece.type == _USER_DEFINED]
    made.add_special_tokens([AddedToken(name, normalized=False) for name in [unknown, *control]])
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in plain])
    made.add_special_tokens([AddedToken(name, normalized=False) for _, name in sorted(renamed.items())])
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
