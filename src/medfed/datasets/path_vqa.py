"""PathVQA, questions about pathology images; kept are those answered by yes or no (Med-MMFL's closed VQA).

Two native layouts are read:

- ``path-vqa/data/{train,validation,test}-*.parquet``, the hub's release: an image's bytes, question, answer in a row;
- ``pvqa/images/{train,val,test}/*.jpg`` and ``pvqa/qas/{train,val,test}/*.json[l]``, the authors' folder with its
  question lists converted. The authors publish pickles, which run code when opened and so are never opened here.

Source: He et al. 2020, PathVQA: 30000+ questions for medical visual question answering.

Deviation: stained sections are in colour; the image modality is grey (luma), as for every other dataset.
Deviation: an image in several official files is wholly in the last of them (test over validation over train). So no
    image is on both sides of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import polars as pl

from medfed.datasets.base import COMPARE, COMPLETE, Dataset, Raw, Record, require
from medfed.datasets.images import decode_grey, load_image
from medfed.datasets.questions import Entry, read_entries, text_bytes, yes_or_no
from medfed.datasets.tables import FileState, read_parquet

FOLDER = "[pP]*[vV][qQ][aA]"
SPLITS = {"train": "train", "val": "development", "validation": "development", "test": "test"}
RANK = {"train": 0, "development": 1, "test": 2}
CONVERT = (
    'a pickle runs code when it is opened; convert it where you trust it: python -c "import json, pickle; '
    "json.dump(pickle.load(open('train_qa.pkl', 'rb')), open('train_qa.json', 'w'))\""
)


class PathVqa(Dataset):
    """PathVQA's yes/no questions; a patient is an image, since neither release names patients."""

    name = "path-vqa"
    modalities = ("image", "question")
    targets = ("yes",)
    marker = f"{FOLDER}/*/train*"
    simulator = "medfed.twins.path_vqa:write_path_vqa_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per yes/no question; ``row`` is its place in a parquet file, null in the other layout."""
        folders = sorted(path for path in root.glob(FOLDER) if any(path.glob("*/train*")))
        require(folders, "no PathVQA folder", root / "path-vqa", COMPLETE)
        shards = sorted(folders[0].glob("data/*.parquet"))
        rows = list(_parquet_rows(shards, root) if shards else _listed_rows(folders[0], root))
        require(rows, "no question is answered by yes or no", folders[0], COMPLETE)
        last = pl.col("split").replace_strict(RANK).max().over("patient")
        index = pl.DataFrame(rows, schema_overrides={"row": pl.Int64, "yes": pl.Int8})
        split = last.replace_strict({rank: split for split, rank in RANK.items()})
        return index.with_columns(split=split, site=pl.lit(None, pl.Utf8))

    def load(self, root: Path, record: Record) -> Raw:
        """Decode the image to grey in [0, 1], and give the question as UTF-8 bytes."""
        question = text_bytes(str(record["question"]))
        if record["row"] is None:
            return {"image": load_image(root, record, "a question list"), "question": question}
        path = root / record["files"][0]
        content = _images(FileState.of(path))[record["row"]] or b""
        return {"image": decode_grey(content, f"{path} (row {record['row']}, field 'image')"), "question": question}


def _parquet_rows(shards: list[Path], root: Path) -> Iterator[dict[str, object]]:
    for path in shards:
        split = path.name.split("-")[0]
        no_split = f"the file is of no official split; allowed: {', '.join(SPLITS)}"
        require(split in SPLITS, no_split, path, "rename or remove it")
        for number, fields in enumerate(_table(path).iter_rows(named=True)):
            entry = Entry(fields, path, number)
            if (answer := yes_or_no(entry.text("answer"))) is not None:
                image = hashlib.sha256(fields["bytes"] or b"").hexdigest()[:16]
                yield _row(entry, answer, image, split, path.relative_to(root))


def _table(path: Path) -> pl.DataFrame:
    """Read a shard as columns question, answer, bytes (of the encoded image)."""
    table = read_parquet(path, ("image", "question", "answer"))
    kind = table.schema["image"]
    encoded = isinstance(kind, pl.Struct) and "bytes" in {field.name for field in kind.fields}
    require(encoded, f"column 'image' is of type {kind}, not a struct with the image's bytes", path, COMPARE)
    return table.select("question", "answer", bytes=pl.col("image").struct.field("bytes"))


@lru_cache(maxsize=1)
def _images(shard: FileState) -> pl.Series:
    """Return the encoded images of the shard that is being decoded; examples of a shard follow each other."""
    return _table(shard.path)["bytes"]


def _listed_rows(folder: Path, root: Path) -> Iterator[dict[str, object]]:
    for split in ("train", "val", "test"):
        for entry in read_entries(_list(folder / "qas", split)):
            if (answer := yes_or_no(entry.text("answer"))) is not None:
                name = entry.file("image")
                image = folder / "images" / split / (name if Path(name).suffix else f"{name}.jpg")
                yield _row(entry, answer, image.stem, split, image.relative_to(root))


def _row(entry: Entry, answer: int, image: str, split: str, file: Path) -> dict[str, object]:
    return {
        "example": f"path-vqa:{entry.path.stem}:{entry.number}",
        "patient": f"path-vqa:{image}",
        "split": SPLITS[split],
        "files": [str(file)],
        "row": entry.number if "bytes" in entry.fields else None,
        "question": entry.text("question"),
        "yes": answer,
    }


def _list(folder: Path, split: str) -> Path:
    """Return the question list of ``split``; a pickle alone is refused."""
    paths = [path for path in sorted((folder / split).glob("*")) + sorted(folder.glob(f"{split}_*")) if path.is_file()]
    lists = [path for path in paths if path.suffix in (".json", ".jsonl")]
    for path in paths:
        usable = lists or path.suffix not in (".pkl", ".pickle")
        require(usable, "the questions are a pickle, which medfed never opens", path, CONVERT)
    require(lists, "no question list (.json or .jsonl)", folder / split, COMPLETE)
    return lists[0]


DATASETS: tuple[Dataset, ...] = (PathVqa(),)
