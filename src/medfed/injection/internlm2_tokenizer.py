"""The tokenizer of an InternLM2 checkpoint as a ``tokenizer.json``, which needs no code of its own.

InternLM2 ships a SentencePiece BPE model (``tokenizer.model``) and Python code around it. What the code adds is in its
settings: names for reserved pieces (``added_tokens_decoder``), and which tokens begin and end a text.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from medfed.errors import StudyError

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
        raise StudyError("reading it needs protobuf", where=path, hint="pip install 'medfed[convert]'")
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
