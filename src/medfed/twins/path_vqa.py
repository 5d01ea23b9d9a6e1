"""The synthetic twin of PathVQA: drawn sections with true questions about them, in the hub's parquet layout.

Some findings are commoner than others, so the question alone tells something about the answer, as in every real set of
questions. Half of the release's questions are open; some are written here too, and left out again when the twin is
read.

A stained tissue section is cells on a pink ground and four findings. Fat vacuoles are holes, fibrosis is bands of
collagen, a haemorrhage is a pool of red cells, and hypercellular tissue has many more nuclei. They may overlap.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float, UInt8
from PIL import Image

from medfed.core.rng import numpy_rng
from medfed.study.data import TwinSpec

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
SHARDS = {"train": 2, "validation": 1, "test": 1}
QUESTIONS_PER_IMAGE = 2
FINDINGS = ("fat vacuoles", "fibrosis", "haemorrhage", "hypercellularity")
PREVALENCE = dict(zip(FINDINGS, (0.65, 0.35, 0.65, 0.35), strict=True))
SHARE_ABSENCE = 0.1
"""Of the questions: those that ask whether a finding is absent."""
PRESENCE = ("is there {} in this section?", "does the tissue show {}?")
ABSENCE = ("is the section free of {}?",)
OPEN = "which findings does the section show?"
Row = dict[str, object]


def write_path_vqa_twin(root: Path, spec: TwinSpec) -> None:
    """Write the shards of every split under ``root``; ``spec.num_patients`` images with two closed questions each."""
    folder = root / "path-vqa" / "data"
    folder.mkdir(parents=True)
    rows: dict[str, list[Row]] = {split: [] for split in SHARES}
    for number in range(spec.num_patients):
        rng = numpy_rng(spec.seed, "path-vqa", number)
        findings = frozenset(name for name, share in PREVALENCE.items() if rng.random() < share)
        content = _jpeg(draw_tissue(findings, min(1.0, 1.4 * (1 - spec.difficulty)), spec.image_size, rng))
        split = "train" if number < 1 else str(rng.choice(list(SHARES), p=list(SHARES.values())))
        if number in (1, 2):  # no split is empty, however small the twin
            split = ("validation", "test")[number - 1]
        questions = [
            _closed(str(name), findings, rng) for name in rng.choice(FINDINGS, QUESTIONS_PER_IMAGE, replace=False)
        ]
        if rng.random() < 0.5:
            questions.append((OPEN, ", ".join(sorted(findings)) or "none"))
        rows[split] += [
            {"image": {"bytes": content, "path": None}, "question": question, "answer": answer}
            for question, answer in questions
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


GROUND, NUCLEUS = (0.93, 0.74, 0.82), (0.35, 0.22, 0.55)
COLLAGEN, BLOOD, HOLE = (0.80, 0.45, 0.62), (0.62, 0.12, 0.18), (0.98, 0.97, 0.98)
Pixels = Float[np.ndarray, "row column"]
Picture = Float[np.ndarray, "row column 3"]


def draw_tissue(
    findings: frozenset[str], contrast: float, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "row column 3"]:
    """Draw a section with some of :data:`FINDINGS`; at contrast 0 they are not to be seen, at 1 they are plain."""
    picture = np.ones((size, size, 3)) * GROUND
    picture -= 0.06 * _mottle(size, rng)[:, :, None]
    if "fibrosis" in findings:
        _stain(picture, _bands(size, rng), COLLAGEN, contrast)
    if "haemorrhage" in findings:
        _stain(picture, _pool(size, rng), BLOOD, contrast)
    if "fat vacuoles" in findings:
        _stain(picture, _discs(size, int(rng.integers(8, 14)), (0.05, 0.08), rng), HOLE, contrast)
    many = contrast if "hypercellularity" in findings else 0.0
    nuclei = _discs(size, int(rng.integers(18, 30)) + round(70 * many), (0.015, 0.025), rng)
    _stain(picture, nuclei, NUCLEUS, 1.0)
    picture += rng.normal(0, 0.03, picture.shape)
    return np.asarray(np.rint(255 * np.clip(picture, 0, 1)), np.uint8)


def _stain(picture: Picture, cover: Pixels, colour: tuple[float, float, float], strength: float) -> None:
    share = (strength * cover)[:, :, None]
    picture *= 1 - share
    picture += share * np.array(colour)


def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Return x and y of pixel centres, 0 to 1."""
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x, y


def _soft(distance: Pixels, size: int) -> Pixels:
    """Return 1 inside (negative distance) and 0 outside, with an edge two pixels wide."""
    return np.asarray(np.clip(0.5 - distance * size / 2, 0, 1), np.float64)


def _discs(size: int, count: int, radii: tuple[float, float], rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    cover = np.zeros_like(x)
    for _ in range(count):
        (left, top), radius = rng.random(2), rng.uniform(*radii)
        rows, columns = _around(top, radius, size), _around(left, radius, size)
        disc = _soft(np.hypot(x[rows, columns] - left, y[rows, columns] - top) - radius, size)
        cover[rows, columns] = np.maximum(cover[rows, columns], disc)
    return cover


def _around(centre: float, radius: float, size: int) -> slice:
    """Return the pixels within ``radius`` of ``centre`` and two more on each side."""
    return slice(max(0, int((centre - radius) * size) - 2), int((centre + radius) * size) + 3)


def _bands(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    angle, turns, phase = rng.uniform(0, np.pi), rng.uniform(4, 6), rng.uniform(0, 2 * np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * turns * across + 0.8 * np.sin(6 * along + phase) + phase)
    return np.asarray(np.clip(1.5 * wave, 0, 1), np.float64)


def _pool(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    left, top = rng.uniform(0.25, 0.75, 2)
    edge = rng.uniform(0.20, 0.28) * (1 + 0.2 * np.sin(3 * np.arctan2(y - top, x - left) + rng.uniform(0, 6)))
    return _soft(np.hypot(x - left, y - top) - edge, size)


def _mottle(size: int, rng: np.random.Generator) -> Pixels:
    x, y = _grid(size)
    waves = rng.uniform(2, 6, (6, 2)), rng.uniform(0, 2 * np.pi, 6)
    total = sum(np.sin(2 * np.pi * (fx * x + fy * y) + phase) for (fx, fy), phase in zip(*waves, strict=True))
    return np.asarray(total / 6, np.float64)
