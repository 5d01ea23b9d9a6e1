"""Symile-MIMIC: a chest film, an ECG and up to 50 blood tests of one hospital admission (Med-MMFL's retrieval task).

Source: Saporta et al. 2024, Contrasting with Symile (NeurIPS); PhysioNet release 1.0.0.

Native layout: ``{train,val,val_retrieval,test}.csv`` (``subject_id``, ``hadm_id``, laboratory values and percentiles,
six CheXpert findings) and per split ``data_npy/SPLIT/{cxr,ecg,labs_percentiles,labs_missingness,hadm_id}_SPLIT.npy``:
``[n, 3, 320, 320]``, ``[n, 1, 5000, 12]``, ``[n, 50]``, ``[n, 50]``, ``[n]``, rows in the CSV's order. ``test`` and
``val_retrieval`` list ten rows per query: the admission itself (``label`` 1) and nine other admissions as candidates
(``label`` 0) of the query ``label_hadm_id``. Only the test split's are read here. No row of the release was at hand.
The layout follows the authors' scripts (``create_dataset_splits.py``, ``process_and_save_tensors.py``) and two public
readers of the release, which agree. Traps of the layout:

- ``labs_missingness`` is 1 where a value was *measured*; an unmeasured one carries the mean percentile.
- CXRs are normalised by ImageNet's mean and spread; this is undone, so that the image modality has its [0, 1].
- ECGs are scaled to [−1, 1] per recording, at 500 Hz, and millivolts cannot be got back. Leads have the order of
  MIMIC-IV-ECG, aVF before aVL; here they get that of :data:`~medfed.modalities.signal.LEADS`, and 100 Hz.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Shaped

from medfed.core.errors import DataError
from medfed.datasets.base import Dataset, Raw, Record, require
from medfed.datasets.tables import FileState, read_csv, whole_numbers
from medfed.modalities.signal import LEADS, RAW_HZ

NATIVE_LEADS = ("I", "II", "III", "AVR", "AVF", "AVL", "V1", "V2", "V3", "V4", "V5", "V6")
NATIVE_HZ = 500
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
SLACK = 1e-3
"""How far rounding may carry an intensity out of [0, 1]."""
NUM_LABS = 50
SPLITS = {"train": "train", "val": "development", "test": "test"}
"""The release's name of a split → ours; the training split is divided between private and public."""
FINDING = "No Finding"
ARRAYS = ("cxr", "ecg", "labs_percentiles", "labs_missingness")
ARRAY_AGAIN = "download the file again and compare its size with the dataset's page"
REPAIR = "compare the line with the table on PhysioNet"


class SymileMIMIC(Dataset):
    """Admissions with three modalities; example ``symile-mimic:HADM_ID``."""

    name = "symile-mimic"
    modalities = ("image", "ecg", "lab-percentiles")
    targets = ("finding",)
    marker = "data_npy/train/labs_percentiles_train.npy"
    simulator = "medfed.twins.symile:write_symile_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """One row per admission of the training, validation and test splits.

        ``finding`` is 0 if the film's report says "No Finding", else 1; patients are dealt by it. ``row`` is the row
        in the split's arrays. ``candidates`` lists a test query's candidate examples, itself among them, and is null
        in the other splits. Tables and arrays must list the same admissions.
        """
        return pl.concat([_split_index(root, native) for native in SPLITS])

    def load(self, root: Path, record: Record) -> Raw:
        """Return ``image`` [row, column] in [0, 1], ``ecg`` [lead, time] and ``lab-percentiles`` [2, 50]."""
        row = int(record["row"])
        cxr, ecg, percentiles, measured = (root / file for file in record["files"])
        images = _open_npy(cxr, (None, 3, None, None), "f")
        signals = _open_npy(ecg, (None, 1, None, len(LEADS)), "f")
        labs = [_open_npy(percentiles, (None, NUM_LABS), "f"), _open_npy(measured, (None, NUM_LABS), "fiub")]
        for path, array in zip((cxr, ecg, percentiles, measured), (images, signals, *labs), strict=True):
            require(row < len(array), f"has {len(array)} rows, but the table names row {row}", path, REPAIR)
        return {
            "image": _grey(images[row], cxr, row),
            "ecg": _leads(signals[row, 0], ecg, row),
            "lab-percentiles": np.stack([_unit(labs[0][row], percentiles, row), _unit(labs[1][row], measured, row)]),
        }


def _split_index(root: Path, native: str) -> pl.DataFrame:
    path = root / f"{native}.csv"
    retrieval = native == "test"
    table = read_csv(path, ("subject_id", "hadm_id", FINDING, *(("label", "label_hadm_id") if retrieval else ())))
    admission = whole_numbers(table, "hadm_id", path, REPAIR)
    stored = _open_npy(root / _array(native, "hadm_id"), (None,), "iu")
    same = np.array_equal(stored, admission.to_numpy())
    hint = "the table and the arrays are of different releases, or one was sorted: download both again"
    require(same, f"its rows are not those of {_array(native, 'hadm_id')}", path, hint)
    index = pl.DataFrame(
        {
            "example": "symile-mimic:" + admission.cast(pl.Utf8),
            "patient": "mimic:" + whole_numbers(table, "subject_id", path, REPAIR).cast(pl.Utf8),
            "site": pl.Series([None] * len(table), dtype=pl.Utf8),
            "split": [SPLITS[native]] * len(table),
            "files": [[_array(native, name) for name in ARRAYS]] * len(table),
            "finding": (table[FINDING].fill_null("").str.strip_suffix(".0") != "1").cast(pl.Int8),
            "row": pl.Series(range(len(table)), dtype=pl.Int64),
        }
    )
    if not retrieval:
        return index.with_columns(candidates=pl.lit(None, pl.List(pl.Utf8)))
    query = "symile-mimic:" + whole_numbers(table, "label_hadm_id", path, REPAIR).cast(pl.Utf8)
    itself = whole_numbers(table, "label", path, REPAIR).to_numpy() == 1
    offered = index.select(candidates="example").with_columns(example=query).group_by("example", maintain_order=True)
    candidates = offered.agg(pl.col("candidates").unique(maintain_order=True))
    joined = index.filter(pl.Series(itself)).join(candidates, on="example", how="left", maintain_order="left")
    for example, listed in joined.select("example", "candidates").iter_rows():  # else nothing it retrieves is right
        among = example in (listed or ())
        require(among, f"the query {example!r} is not among its own candidates", path, REPAIR)
    return joined


def _array(native: str, name: str) -> str:
    return f"data_npy/{native}/{name}_{native}.npy"


def _open_npy(path: Path, shape: tuple[int | None, ...], kinds: str) -> Shaped[np.ndarray, "..."]:
    """Map a ``.npy`` file into memory, read-only; it may be larger than memory.

    Wanted are a ``shape``, in which None is any size above 0, and one of NumPy's ``kinds`` of values (``"iu"``: whole
    numbers).
    """
    array = _mapped(FileState.of(path))
    known_kind = array.dtype.kind in kinds
    require(known_kind, f"holds {array.dtype} values, which do not belong here", path, ARRAY_AGAIN)
    sides = zip(array.shape, shape, strict=False)
    fits = array.ndim == len(shape) and all(have == want if want is not None else have > 0 for have, want in sides)
    wanted = " × ".join("any" if size is None else str(size) for size in shape)
    require(fits, f"has shape {array.shape}; {wanted} is needed", path, ARRAY_AGAIN)
    return array


@lru_cache(maxsize=32)
def _mapped(state: FileState) -> Shaped[np.ndarray, "..."]:
    """Map the file; the map is kept while the file is the same, for its other rows."""
    path = state.path
    try:
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "it holds Python objects, which are never unpickled" if "object" in str(error).lower() else str(error)
        raise DataError(f"not a whole .npy array ({reason})", where=path, hint=ARRAY_AGAIN) from error
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise DataError("a .npz archive, not a .npy array", where=path, hint=ARRAY_AGAIN)
    return mapped


def _grey(channels: Float32[np.ndarray, "3 row column"], path: Path, row: int) -> Float32[np.ndarray, "row column"]:
    """Undo ImageNet's normalisation and average the three equal channels."""
    image = np.asarray(channels, np.float32) * IMAGENET_STD[:, None, None] + IMAGENET_MEAN[:, None, None]
    low, high = float(image.min()), float(image.max())
    fits = low >= -SLACK and high <= 1 + SLACK  # false for NaN as well
    what = f"row {row}: intensities from {low:g} to {high:g} after undoing ImageNet's normalisation; [0, 1] is needed"
    hint = "use the release's data_npy, or normalise by ImageNet's mean and spread as its script does"
    require(fits, what, path, hint)
    return np.asarray(image.mean(0).clip(0, 1))


def _leads(signal: Float32[np.ndarray, "time lead"], path: Path, row: int) -> Float32[np.ndarray, "lead resampled"]:
    """Put the leads in our order and bring the recording to 100 Hz."""
    from scipy.signal import resample_poly  # noqa: PLC0415 (large; loaded where it is used)

    fits = np.isfinite(signal).all() and float(np.abs(signal).max()) <= 1 + SLACK
    require(fits, f"row {row}: a value is not a number in [-1, 1]", path, "use the release's scaled ECGs")
    ordered = np.asarray(signal, np.float32).T[[NATIVE_LEADS.index(lead) for lead in LEADS]]
    return np.asarray(resample_poly(ordered, 1, NATIVE_HZ // RAW_HZ, axis=1, padtype="line"), np.float32)


def _unit(values: Shaped[np.ndarray, " lab"], path: Path, row: int) -> Float32[np.ndarray, " lab"]:
    """Return percentiles or flags, which are both from 0 to 1."""
    fits = ((values >= 0) & (values <= 1)).all()  # false for NaN as well
    require(fits, f"row {row}: a value is not a number in [0, 1]", path, "use the release's percentiles and flags")
    return np.asarray(values, np.float32)


DATASETS: tuple[Dataset, ...] = (SymileMIMIC(),)
