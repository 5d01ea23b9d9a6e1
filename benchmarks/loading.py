"""Decoding files against the plain library call: what it costs that nothing damaged passes.

The files are those of the synthetic twins, in native layouts; volumes are noise, larger than the twins'.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import polars as pl
import pydicom
from PIL import Image
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from benchmarks.bytes import size
from benchmarks.resident import growth, readable
from benchmarks.rows import Row, counted, left_out
from benchmarks.timing import Bench, Run, Versus
from medfed.core.catalog import DATASETS, MODALITIES
from medfed.data.cache import SETTLED_SECONDS, DecodedCache
from medfed.data.decode import decode
from medfed.datasets.base import Dataset
from medfed.datasets.brats import read_nifti, write_nifti
from medfed.datasets.dicom import read_dicom
from medfed.datasets.first_day import NUM_HOURS
from medfed.datasets.images import read_grey
from medfed.datasets.ptbxl import COLUMNS, TABLE
from medfed.datasets.tables import read_csv
from medfed.datasets.wfdb_records import read_wfdb
from medfed.modalities.base import Modality
from medfed.modalities.signal import LEADS
from medfed.modalities.timeseries import VITALS
from medfed.modalities.volume import Volume
from medfed.study.data import TwinSpec

GROWTH, LEAST = "peak growth of a process", 1_000_000
"""Below so many bytes it is pages, not data."""
GRID = (48, 48, 48)


def loading_rows(bench: Bench) -> Iterator[Row]:
    """One row per format; a turn reads every file, and both ways give the same numbers."""
    number, pixels, side = (3, 64, 8) if bench.quick else (24, 512, 96)
    with tempfile.TemporaryDirectory() as folder:
        spec = TwinSpec(num_patients=number, image_size=pixels)
        for title, plain, (ours, theirs) in _formats(Path(folder), spec, side):
            variants: dict[str, Run] = {"medfed": ours, plain: theirs}
            pair = Versus("medfed", plain, same=True, wall=True)
            yield from bench.race("loading", title, variants, [pair], seconds=3.0, tolerance=1e-5, turns=15)
            yield _memory(bench, Path(folder), spec, side, (title, plain))


def cache_rows(bench: Bench) -> Iterator[Row]:
    """Decoding a dataset against taking the arrays that an earlier run left; one row per format."""
    number, pixels = (3, 64) if bench.quick else (24, 512)
    spec = TwinSpec(num_patients=number, image_size=pixels)
    with tempfile.TemporaryDirectory() as folder:
        cache = DecodedCache(Path(folder) / "cache")
        for name in ("covid-radiography", "rsna-pneumonia", "ptbxl", "yaib-mortality", "brats"):
            dataset, root = DATASETS[name], _twin(Path(folder), name, spec)
            time.sleep(2 * SETTLED_SECONDS)  # files that were written just now are not trusted
            variants: dict[str, Run] = {
                "decoding": partial(_decoded, dataset, root, None),
                "the cache": partial(_decoded, dataset, root, cache),
            }
            pair = Versus("decoding", "the cache", same=True, wall=True)
            title = f"decoded cache, {name}, {number} patients"
            yield from bench.race("loading", title, variants, [pair], seconds=3.0, tolerance=0.0)


def _decoded(dataset: Dataset, root: Path, cache: DecodedCache | None) -> object:
    """Decode as a study does, for its samples; the whole arrays are read outside the clock."""
    modalities = {name: _roomy(MODALITIES[name]) for name in (*dataset.modalities, *dataset.truths)}
    decoded = decode(dataset, root, modalities, cache=cache)
    return lambda: dict(decoded.samples)


def _roomy(modality: Modality) -> Modality:
    """Return the modality of a volume or mask with a grid that holds the twin's brains; any other as it is."""
    return modality.model_copy(update={"size": GRID}) if isinstance(modality, Volume) else modality


def _memory(bench: Bench, folder: Path, spec: TwinSpec, side: int, row: tuple[str, str]) -> Row:
    """Return the row of what a process of its own grows by when it reads the files and keeps what they say."""
    title, plain = row
    if not readable():
        return left_out("loading", title, "medfed", plain, "this system does not tell it", measure=GROWTH)
    ours, theirs = (growth(partial(_read, folder, spec, side, title, which)) for which in (0, 1))
    if bench.quick:  # too little to be seen
        ours, theirs = max(ours, 1), max(theirs, 1)
    elif min(ours, theirs) < LEAST:
        reason = f"{size(ours)} and {size(theirs)}, too little to compare"
        return left_out("loading", title, "medfed", plain, reason, measure=GROWTH)
    return counted("loading", title, ("medfed", ours), (plain, theirs), measure=GROWTH, takes=size(ours))


def _read(folder: Path, spec: TwinSpec, side: int, title: str, which: int) -> None:
    """Read the files of one format, which are there, in one of the two ways."""
    pair = next(pair for held, _, pair in _formats(folder, spec, side) if held == title)
    kept = pair[which]()
    del kept


Pair = tuple[Run, Run]


def _formats(folder: Path, spec: TwinSpec, side: int) -> Iterator[tuple[str, str, Pair]]:
    """Yield a format, the plain call, and both ways to read its files."""
    images = sorted(_twin(folder, "covid-radiography", spec).rglob("*.png"))
    yield f"{_several(images)}, {spec.image_size}²", "Pillow", _each(images, read_grey, _pillow)
    films = sorted(_twin(folder, "rsna-pneumonia", spec).rglob("*.dcm"))
    pair = _each(films, lambda path: _standard(read_dicom(path)), _pydicom)
    yield f"{_several(films)}, {spec.image_size}²", "pydicom", pair
    ecgs = _twin(folder, "ptbxl", spec)
    headers = sorted(ecgs.rglob("*.hea"))
    pair = _each(headers, lambda path: read_wfdb(path, path.with_suffix(".dat")), _wfdb)
    yield f"{_several(headers)} (WFDB), 12 leads × 1,000", "wfdb", pair
    table = ecgs / TABLE
    csv: Pair = (lambda: read_csv(table, COLUMNS).height, lambda: pl.read_csv(table, infer_schema=False).height)
    yield f"a .csv of {_rows(pl.read_csv(table))}", "polars", csv
    stays = _twin(folder, "yaib-mortality", spec)
    tables = sorted(stays.rglob("dyn.parquet"))
    hours = _rows(pl.concat([pl.read_parquet(path) for path in tables], how="diagonal"))
    both: Pair = (lambda: _icu_stays(stays, tables), lambda: _icu_tables(tables))
    yield f"{_several(tables)} of {hours}, every stay", "polars", both
    volumes = [folder / f"{number}.nii.gz" for number in range(3)]
    for number, path in enumerate(volumes):
        if not path.exists():
            write_nifti(path, np.random.default_rng(number).integers(0, 900, (side, side, side)).astype(np.int16))
    scans = _each(volumes, lambda path: read_nifti(path).voxels, lambda path: np.asanyarray(nibabel.load(path).dataobj))
    yield f"3 .nii.gz, {side}³", "nibabel", scans


def _twin(folder: Path, name: str, spec: TwinSpec) -> Path:
    root = folder / name
    if not root.exists():
        root.mkdir()
        DATASETS[name].synthesize(root, spec)
    return root


def _each(paths: list[Path], ours: Callable[[Path], object], theirs: Callable[[Path], object]) -> Pair:
    return lambda: [ours(path) for path in paths], lambda: [theirs(path) for path in paths]


def _pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), np.float32) / np.float32(255)


def _pydicom(path: Path) -> object:
    file = pydicom.dcmread(path)
    picture = apply_voi_lut(apply_modality_lut(file.pixel_array, file), file)
    return _standard(picture, inverted=file.PhotometricInterpretation == "MONOCHROME1")


def _standard(grey: np.ndarray, *, inverted: bool = False) -> object:
    """Return, outside the clock, the image with mean 0 and spread 1: pydicom's own range is another."""
    return lambda: (-1.0 if inverted else 1.0) * (grey - grey.mean()) / grey.std()


def _wfdb(path: Path) -> np.ndarray:
    import wfdb  # noqa: PLC0415 (large; loaded where it is used)

    record = wfdb.rdrecord(str(path.with_suffix("")))
    row = {name.upper(): number for number, name in enumerate(record.sig_name)}
    return np.asarray(record.p_signal[:, [row[lead] for lead in LEADS]].T, np.float32)


def _icu_stays(root: Path, tables: list[Path]) -> object:
    """Read every stay; the tables get a new date, or they would be remembered from the last turn."""
    for path in tables:
        os.utime(path)
    dataset = DATASETS["yaib-mortality"]
    stays = [dataset.load(root, record) for record in dataset.index(root).iter_rows(named=True)]
    return lambda: np.nansum([stay["vitals"] for stay in stays], (0, 1))


def _icu_tables(tables: list[Path]) -> object:
    """Read every table; the sums over the first day are taken outside the clock."""
    read = [pl.read_parquet(path) for path in tables]
    day = pl.col("time") < pl.duration(hours=NUM_HOURS)
    return lambda: np.sum([table.filter(day).select(VITALS).sum().to_numpy()[0] for table in read], 0)


def _several(paths: list[Path]) -> str:
    return f"{len(paths)} {paths[0].suffix}"


def _rows(table: pl.DataFrame) -> str:
    return f"{table.height:,} rows"
