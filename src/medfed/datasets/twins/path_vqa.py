"""The synthetic twin of PathVQA: drawn sections with true questions about them, in the hub's parquet layout.

Some findings are commoner than others, so the question alone says something, as in every real set of questions; the
image says the rest. Half of the release's questions are open; some are written here too, and left out again when the
twin is read.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from medfed.datasets.base import TwinSpec
from medfed.datasets.twins.tissue import FINDINGS, draw_tissue
from medfed.rng import numpy_rng

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
SHARDS = {"train": 2, "validation": 1, "test": 1}
QUESTIONS_PER_IMAGE = 2
PREVALENCE = dict(zip(FINDINGS, (0.65, 0.35, 0.65, 0.35), strict=True))
SHARE_ABSENCE = 0.1
"""Of the questions: those that ask whether a finding is absent."""

PRESENCE = ("is there {} in this section?", "does the tissue show {}?")
ABSENCE = ("is the section free of {}?",)
OPEN = "which findings does the section show?"
Row = dict[str, object]


def write_path_vqa_twin(folder: Path, spec: TwinSpec) -> None:
    """Write the shards of every split into ``folder``; ``spec.num_patients`` images with two closed questions each."""
    folder.mkdir(parents=True)
    rows: dict[str, list[Row]] = {split: [] for split in SHARES}
    for number in range(spec.num_patients):
        rng = numpy_rng(spec.seed, "path-vqa", number)
        findings = frozenset(name for name, share in PREVALENCE.items() if rng.random() < share)
        content = _jpeg(draw_tissue(findings, min(1.0, 1.4 * (1 - spec.difficulty)), spec.image_size, rng))
        split = "train" if number < 1 else str(rng.choice(list(SHARES), p=list(SHARES.values())))
        if number in (1, 2):  # no split is empty, however small the twin
            split = ("validation", "test")[number - 1]
        asked = [_closed(str(name), findings, rng) for name in rng.choice(FINDINGS, QUESTIONS_PER_IMAGE, replace=False)]
        if rng.random() < 0.5:
            asked.append((OPEN, ", ".join(sorted(findings)) or "none"))
        rows[split] += [
            {"image": {"bytes": content, "path": None}, "question": question, "answer": answer}
            for question, answer in asked
        ]
    for split, examples in rows.items():
        _write_shards(folder, split, examples)


def _closed(finding: str, findings: frozenset[str], rng: np.random.Generator) -> tuple[str, str]:
    absence = rng.random() < SHARE_ABSENCE
    wordings = ABSENCE if absence else PRESENCE
    question = wordings[int(rng.integers(len(wordings)))].format(finding)
    return question, "yes" if (finding in findings) != absence else "no"


def _jpeg(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return content.getvalue()


def _write_shards(folder: Path, split: str, rows: list[Row]) -> None:
    count = SHARDS[split]
    image = pl.Struct({"bytes": pl.Binary, "path": pl.Utf8})
    for number in range(count):
        part = rows[number * len(rows) // count : (number + 1) * len(rows) // count]
        table = pl.DataFrame(part, schema={"image": image, "question": pl.Utf8, "answer": pl.Utf8})
        table.write_parquet(folder / f"{split}-{number:05d}-of-{count:05d}.parquet", compression="uncompressed")
