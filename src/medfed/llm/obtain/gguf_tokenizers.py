"""The tokenizer of a GGUF file, written as ``tokenizer.json`` and checked: what it encodes it decodes again.

transformers builds it. A file implies two things by the name of its pre-tokenizer alone, and both are added here.
Digits stand alone before the words are split (SmolLM2). Text is composed first, as Unicode's NFC (Qwen2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFReader, TokenType
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from medfed.core.errors import StudyError

CHECKED = (
    "Is there a pleural effusion?",
    "Question: What is pneumonia?\nAnswer: an infection of the lung.\n\n",
    "SpO2 97 %, pH 7.35, creatinine 1.2 mg/dL,  37.2 °C; 12/80\t(2026-11-30)",
    "naïve café – Ödem, œdème, отёк, 肺炎 😀",
    "def f(x):\n    return x ** 2  # 1e-5\n",
    "It's the patient's; don't, we'll, THEY'VE",
)
"""Texts that must come back as they were."""

_SEPARATE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
"""Pre-tokenizers that cut digits off before words, as llama.cpp's ``llama-vocab.cpp`` lists them."""

_COMPOSED = frozenset({"deepseek-r1-qwen", "qwen2"})
"""Pre-tokenizers whose tokenizer first composes its text (Unicode's NFC)."""

_SPLIT, _TOKENS, _TYPES = (f"tokenizer.ggml.{name}" for name in ("pre", "tokens", "token_type"))
_ELSEWHERE = "use the LLM's safetensors with its own tokenizer"

_ENDS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<_EOT>",
    "<|return|>",
    "</s>",
)
"""Control tokens that end a turn or a text, whatever the file says: llama.cpp's own list."""


class Vocabulary(NamedTuple):
    """Facts of a GGUF file's tokenizer.

    Attributes:
        split: how text is cut before the merges, by llama.cpp's name.
        control: id of every control token, by its text.
    """

    split: str | None
    control: dict[str, int]


def read_vocabulary(reader: GGUFReader) -> Vocabulary:
    """Return what is needed of the vocabulary; a file without one fails later, with the tokenizer."""
    fields = reader.fields
    split = fields[_SPLIT].contents() if _SPLIT in fields else None
    if _TYPES not in fields:
        return Vocabulary(split, {})
    types = fields[_TYPES].contents()
    numbers = [number for number, kind in enumerate(types) if kind == TokenType.CONTROL]
    return Vocabulary(split, {str(fields[_TOKENS].contents(number)): number for number in numbers})


def write_tokenizer(source: Path, vocabulary: Vocabulary, folder: Path) -> Any:
    """Write the tokenizer and chat template of the GGUF file ``source`` to ``folder``, and return it as it reads back.

    Raises:
        StudyError: it cannot be built, or does not give back what it was given.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise StudyError(f"its tokenizer cannot be built: {error}", where=source, hint=_ELSEWHERE) from error
    backend = tokenizer.backend_tokenizer
    if vocabulary.split in _SEPARATE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if vocabulary.split in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(folder)
    written = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    _check(written, tokenizer, vocabulary.control, source)
    return written


def _check(tokenizer: Any, built: Any, control: dict[str, int], source: Path) -> None:
    """Make sure that the tokenizer as it was written is the one that was built, and loses nothing."""
    for text in CHECKED:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids != built.encode(text, add_special_tokens=False):
            raise StudyError(f"its tokenizer reads back as another one: {text!r}", where=source, hint=_ELSEWHERE)
        if (back := tokenizer.decode(ids)) != text:
            what = f"its tokenizer loses text: {text!r} comes back as {back!r}"
            raise StudyError(what, where=source, hint=_ELSEWHERE)
    for token, number in control.items():
        if (ids := tokenizer.encode(token, add_special_tokens=False)) != [number]:
            what = f"the special token {token!r} is {ids} and not {number}"
            raise StudyError(what, where=source, hint=_ELSEWHERE)


def end_tokens(tokenizer: Any) -> list[int]:
    """Return the ids of all tokens that end a turn or a text, the tokenizer's own first."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    first = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return list(dict.fromkeys([*first, *(special[name] for name in _ENDS if name in special)]))
