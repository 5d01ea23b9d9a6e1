"""The LLM of the demo and the tests: a small Llama pre-trained once and kept in a cache folder.

The cache entry is named by a hash of the settings and the text, has the layout of a Hugging Face model, and appears
whole or not at all; its weights are checked against their SHA-256 before use.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from medfed.core.errors import RunError
from medfed.core.files import sha256_of
from medfed.llm.tiny.cases import FINDINGS, documents
from medfed.llm.tiny.open_cases import OPEN
from medfed.llm.tiny.pretrain import SPECIAL, Pretrained, pretrain
from medfed.study.foundation import TinySettings

VERSION = 3
"""Raise it when pre-training changes: older cache entries are then passed over."""
RECORD, WEIGHTS = "pretraining.json", "model.safetensors"


def prepare_tiny(settings: TinySettings, cache: Path, corpus: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the pre-trained LLM and the record of its pre-training; train it if the cache lacks it.

    Raises:
        DataError: the corpus cannot be read.
        RunError: the cached weights are damaged.
    """
    texts = documents(corpus)
    folder = cache / "tiny" / _key(settings, texts)
    if not (folder / RECORD).is_file():
        _write(pretrain(settings, texts), folder)
    record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if sha256_of(folder / WEIGHTS) != record.pop("sha256"):
        raise RunError("the cached LLM is damaged", where=folder, hint="remove the folder; it is then trained again")
    return folder, record


def _key(settings: TinySettings, texts: list[str]) -> str:
    cases = [path.read_text(encoding="utf-8") for path in (FINDINGS, OPEN)]
    facts = [VERSION, settings.model_dump(), cases, texts]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _write(trained: Pretrained, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    disable_progress_bar()
    try:
        trained.model.save_pretrained(partial)
        pad, start, end = SPECIAL
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=trained.tokenizer, pad_token=pad, bos_token=start, eos_token=end
        )
        tokenizer.save_pretrained(partial)
        record = {**trained.info, "sha256": sha256_of(partial / WEIGHTS)}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if not (folder / RECORD).is_file():
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
