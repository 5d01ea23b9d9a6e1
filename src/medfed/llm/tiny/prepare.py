"""The LLM of the demo and the tests: a small Llama pre-trained once and kept in a cache folder.

The cache entry has the layout of a Hugging Face model. Its name is a hash of the settings and the text. It appears
whole or not at all, and its weights are checked against their SHA-256 before use.

The running text is the package's own reference, or a folder of the user's. A folder may hold ``.txt`` files, paragraphs
apart by blank lines, and ``.xml`` files with ``<Question>`` and ``<Answer>`` elements (the layout of MedQuAD).
Everything must be UTF-8.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from medfed.core.errors import DataError, RunError
from medfed.core.files import sha256_of
from medfed.llm.tiny.cases import FINDINGS, facts
from medfed.llm.tiny.open_cases import OPEN
from medfed.llm.tiny.pretrain import SPECIAL, Pretrained, pretrain
from medfed.study.foundation import TinySettings

VERSION = 4
"""Raise it when pre-training changes: older cache entries are then passed over."""
RECORD, WEIGHTS = "pretraining.json", "model.safetensors"
REFERENCE = Path(__file__).parent / "corpus" / "reference.txt"


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
    content = [VERSION, settings.model_dump(), cases, texts]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _write(trained: Pretrained, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    disable_progress_bar()
    try:
        trained.model.save_pretrained(partial)
        pad, start, end = SPECIAL
        starting = [(start, trained.tokenizer.token_to_id(start))]
        trained.tokenizer.post_processor = TemplateProcessing(single=f"{start} $A", special_tokens=starting)
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


def documents(corpus: Path | None) -> list[str]:
    """Return the texts of ``corpus``, or the package's own, in the order of their file names.

    Raises:
        DataError: the folder is absent, holds no text, or a file is not UTF-8 or not XML.
    """
    if corpus is None:
        return _paragraphs(REFERENCE) + facts()
    if not corpus.is_dir():
        raise DataError("the corpus is not a folder", where=corpus, hint="check --corpus")
    texts: list[str] = []
    for path in sorted(corpus.rglob("*")):
        if path.suffix == ".txt":
            texts += _paragraphs(path)
        elif path.suffix == ".xml":
            texts += _answered_questions(path)
    if not texts:
        raise DataError("no text in *.txt or *.xml files", where=corpus, hint="check --corpus")
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start})", where=path, hint="convert it: iconv -f LATIN1 -t UTF-8"
        ) from error


def _paragraphs(path: Path) -> list[str]:
    return [" ".join(block.split()) for block in _read(path).split("\n\n") if block.strip()]


def _answered_questions(path: Path) -> list[str]:
    text = _read(path)
    try:
        root = ET.fromstring(text)  # noqa: S314 # expat bounds entity expansion since 2.4.1, older than Python 3.11's
    except ET.ParseError as error:
        raise DataError(f"not XML: {error}", where=path, hint="download the file again") from error
    pairs = []
    for parent in root.iter():
        question, answer = _text(parent.find("Question")), _text(parent.find("Answer"))
        if question and answer:
            pairs.append(f"Question: {question} Answer: {answer}")
    return pairs


def _text(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
