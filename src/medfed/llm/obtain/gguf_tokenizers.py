"""The tokenizer of a GGUF file, written as ``tokenizer.json`` and checked: what it encodes it decodes again.

transformers builds it. Two things that a file only implies by the name of its pre-tokenizer are put right here: digits
that stand alone before the words are split (SmolLM2), and Unicode's composed form (Qwen2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer and chat template of the GGUF file ``source`` to ``folder``.

    Raises:
        StudyError: it cannot be built, or does not give back what it was given.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise StudyError(f"its tokenizer cannot be built: {error}", where=source, hint=_ELSEWHERE) from error
    fields = GGUFReader(source).fields
    kind = fields["tokenizer.ggml.pre"].contents() if "tokenizer.ggml.pre" in fields else None
    backend = tokenizer.backend_tokenizer
    if kind in _SEPARATE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if kind in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(folder)
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    control = {tokens[number]: number for number, kind in enumerate(types) if kind == TokenType.CONTROL}
    _check(AutoTokenizer.from_pretrained(folder, local_files_only=True), tokenizer, control, source)


_ELSEWHERE = "use the LLM's safetensors with its own tokenizer"


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


def end_tokens(folder: Path) -> list[int]:
    """Return the ids of all tokens that end a turn or a text, the tokenizer's own first."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return list(dict.fromkeys([*own, *(special[name] for name in _ENDS if name in special)]))
