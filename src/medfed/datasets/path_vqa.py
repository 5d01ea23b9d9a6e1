"""PathVQA, questions about pathology images; kept are those answered by yes or no (Med-MMFL's closed VQA).

Two native layouts, told apart by what is there:

- ``path-vqa/data/{train,validation,test}-*.parquet``, the hub's release: an image's bytes, question, answer in a row;
- ``pvqa/images/{train,val,test}/*.jpg`` beside ``pvqa/qas/{train,val,test}/*.json[l]``, the authors' folder with its
  question lists converted: they publish them as pickles, which run code when opened and so are never opened here.

Source: He et al. 2020, PathVQA: 30000+ questions for medical visual question answering.

Deviation: stained sections are in colour; the image modality is grey (luma), as for every other dataset.
Deviation: an image that stands in several official files is wholly in the last of them (test over validation over
    train), so that no image is on both sides of a split.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from medfed.core.errors import DataError
from medfed.datasets.base import Card, Dataset, Record, read_parquet
from medfed.datasets.formats import inside, read_rows, text, yes_or_no
from medfed.datasets.images import decode_grey, load_image

FOLDER = "[pP]*[vV][qQ][aA]"
SPLITS = {"train": "train", "val": "development", "validation": "development", "test": "test"}
RANK = {"train": 0, "development": 1, "test": 2}
CONVERT = (
    'a pickle runs code when it is opened; convert it where you trust it: python -c "import json, pickle; '
    "json.dump(pickle.load(open('train_qa.pkl', 'rb')), open('train_qa.json', 'w'))\""
)

Row = dict[str, object]


class PathVqa(Dataset):
    """PathVQA's yes/no questions; a patient is an image, since neither release says whose section it is."""

    name: ClassVar[str] = "path-vqa"
    card: ClassVar[Card] = Card(
        title="PathVQA",
        version="2023 release: 32,632 questions on 4,289 images, half of them answered by yes or no",
        licence="MIT for the questions; images are their publishers' (two textbooks and the PEIR library)",
        access="https://github.com/UCSD-AI4H/PathVQA or huggingface.co/datasets/flaviagiammarino/path-vqa",
        citation="He et al., arXiv:2003.10286 (2020)",
        note="No patient ids are published: each image counts as a patient. Only yes/no questions are read.",
    )
    modalities: ClassVar[tuple[str, ...]] = ("image", "question")
    targets: ClassVar[tuple[str, ...]] = ("yes",)
    marker: ClassVar[str] = f"{FOLDER}/*/train*"
    simulator: ClassVar[str] = "medfed.twins.path_vqa:write_path_vqa_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per yes/no question; ``row`` is its place in a parquet file, null in the other layout.

        Raises:
            DataError: a file is missing, a pickle, or malformed; the message names file, record and field.
        """
        folder = _folder(root)
        shards = sorted(folder.glob("data/*.parquet"))
        rows = _parquet_rows(shards, root) if shards else _listed_rows(folder, root)
        if not rows:
            raise DataError("no question is answered by yes or no", where=folder, hint="download the complete dataset")
        last = pl.col("split").replace_strict(RANK).max().over("patient")
        return pl.DataFrame(rows, schema_overrides={"row": pl.Int64, "yes": pl.Int8}).with_columns(
            split=last.replace_strict({rank: split for split, rank in RANK.items()}), site=pl.lit(None, pl.Utf8)
        )

    def load(self, root: Path, record: Record) -> dict[str, np.ndarray]:
        """Decode the image to grey in [0, 1], and give the question as UTF-8 bytes."""
        question = np.frombuffer(str(record["question"]).encode(), np.uint8)
        if record["row"] is None:
            return {"image": load_image(root, record, "a question list"), "question": question}
        path = root / record["files"][0]
        content = _images(path, path.stat().st_mtime_ns)[record["row"]]
        return {"image": decode_grey(content or b"", _place(path, record["row"])), "question": question}


def _folder(root: Path) -> Path:
    hits = sorted(path for path in root.glob(FOLDER) if any(path.glob("*/train*")))
    if not hits:
        raise DataError("no PathVQA folder", where=root / "path-vqa", hint="download the dataset, or check --data-root")
    return hits[0]


def _place(path: Path, row: int) -> str:
    return f"{path} (row {row}, field 'image')"


def _parquet_rows(shards: list[Path], root: Path) -> list[Row]:
    rows: list[Row] = []
    for path in shards:
        split = path.name.split("-")[0]
        if split not in SPLITS:
            raise DataError(
                f"the file is of no official split; allowed: {', '.join(SPLITS)}",
                where=path,
                hint="rename or remove it",
            )
        for number, row in enumerate(_table(path).iter_rows(named=True)):
            if (target := yes_or_no(text(row, "answer", path, number))) is not None:
                content: bytes = row["bytes"] or b""
                rows.append(
                    {
                        "example": f"path-vqa:{path.stem}:{number}",
                        "patient": f"path-vqa:{hashlib.sha256(content).hexdigest()[:16]}",
                        "split": SPLITS[split],
                        "files": [str(path.relative_to(root))],
                        "row": number,
                        "question": text(row, "question", path, number),
                        "yes": target,
                    }
                )
    return rows


def _table(path: Path) -> pl.DataFrame:
    """Read a shard with its images' encoded bytes in the column ``bytes``."""
    table = read_parquet(path, ("image", "question", "answer"))
    kind = table.schema["image"]
    if not isinstance(kind, pl.Struct) or "bytes" not in {field.name for field in kind.fields}:
        raise DataError(
            f"column 'image' is of type {kind}, not a struct with the image's bytes",
            where=path,
            hint="compare the file with the version on the dataset's card (medfed data list)",
        )
    return table.select("question", "answer", bytes=pl.col("image").struct.field("bytes"))


@lru_cache(maxsize=1)
def _images(path: Path, _changed: int) -> pl.Series:
    """Return the encoded images of the shard that is being decoded; examples of a shard follow each other."""
    return _table(path)["bytes"]


def _listed_rows(folder: Path, root: Path) -> list[Row]:
    rows: list[Row] = []
    for split in ("train", "val", "test"):
        path = _list(folder / "qas", split)
        for number, row in enumerate(read_rows(path)):
            if (target := yes_or_no(text(row, "answer", path, number))) is None:
                continue
            name = inside(text(row, "image", path, number), "image", path, number)
            image = folder / "images" / split / (name if Path(name).suffix else f"{name}.jpg")
            rows.append(
                {
                    "example": f"path-vqa:{path.stem}:{number}",
                    "patient": f"path-vqa:{image.stem}",
                    "split": SPLITS[split],
                    "files": [str(image.relative_to(root))],
                    "row": None,
                    "question": text(row, "question", path, number),
                    "yes": target,
                }
            )
    return rows


def _list(folder: Path, split: str) -> Path:
    """Return the question list of ``split``; a pickle alone is refused."""
    found = [path for path in sorted((folder / split).glob("*")) + sorted(folder.glob(f"{split}_*")) if path.is_file()]
    for path in found:
        if path.suffix in (".json", ".jsonl"):
            return path
    pickles = [path for path in found if path.suffix in (".pkl", ".pickle")]
    if pickles:
        raise DataError("the questions are a pickle, which medfed never opens", where=pickles[0], hint=CONVERT)
    raise DataError("no question list (.json or .jsonl)", where=folder / split, hint="download the complete dataset")


DATASETS: tuple[Dataset, ...] = (PathVqa(),)
