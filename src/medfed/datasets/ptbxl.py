"""PTB-XL, 12-lead ECGs (FedKIM Table 2: abnormal ECG detection, EAD; ectopic beats detection, EBD).

Native layout: ``ptbxl_database.csv`` and ``records100/<thousands>/<ecg_id>_lr.{hea,dat}`` (WFDB, 100 Hz, 10 s). The
official folds 1–10 are dealt as the paper's 7:1:1:1: folds 1–7 private, 8 public, 9 development, 10 test.
Source: Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset.
"""

from __future__ import annotations

import ast
from pathlib import Path

import polars as pl

from medfed.datasets.base import Dataset, Raw, Record
from medfed.datasets.decoded import CODES
from medfed.datasets.tables import read_csv, require_cells, whole_numbers
from medfed.datasets.wfdb_records import read_wfdb

TABLE = "ptbxl_database.csv"
COLUMNS = ("ecg_id", "patient_id", "site", "scp_codes", "extra_beats", "strat_fold", "filename_lr")
SPLIT_OF_FOLD = {**dict.fromkeys(range(1, 8), "private"), 8: "public", 9: "development", 10: "test"}
REPAIR = "compare the line with the table on PhysioNet, and correct or remove it"


class PTBXL(Dataset):
    """PTB-XL at 100 Hz."""

    name = "ptbxl"
    modalities = ("ecg",)
    targets = ("abnormal", "ectopic_beats")
    marker = TABLE
    simulator = "medfed.twins.ecg:write_ecg_twin"

    def index(self, root: Path) -> pl.DataFrame:
        """Read ``ptbxl_database.csv``.

        ``abnormal`` is 0 if the statement NORM has a likelihood above 50, else 1. ``ectopic_beats`` is 1 if the column
        extra_beats holds "ES" (1ES, VES, SVES, …), else 0.
        """
        path = root / TABLE
        table = read_csv(path, COLUMNS)
        codes = [_likelihoods(text) for text in table["scp_codes"]]
        known = pl.Series([code is not None for code in codes], dtype=pl.Boolean)
        require_cells(table["scp_codes"], known, "is not a dictionary of statement to likelihood", path, REPAIR)
        outside = table["filename_lr"].fill_null("/").str.contains(r"^/|^$|(^|/)\.\.(/|$)")
        require_cells(table["filename_lr"], ~outside, "is not a relative path inside the dataset", path, REPAIR)
        split = whole_numbers(table, "strat_fold", path, REPAIR).replace_strict(SPLIT_OF_FOLD, default=None)
        require_cells(table["strat_fold"], split.is_not_null(), "is not a fold from 1 to 10", path, REPAIR)
        ectopic = table["extra_beats"].fill_null("").str.contains("ES", literal=True)
        return pl.DataFrame(
            {
                "example": "ptbxl:" + whole_numbers(table, "ecg_id", path, REPAIR).cast(pl.Utf8),
                "patient": "ptbxl:" + whole_numbers(table, "patient_id", path, REPAIR).cast(pl.Utf8),
                "site": table["site"].str.strip_suffix(".0"),
                "split": split,
                "files": [[f"{name}.hea", f"{name}.dat"] for name in table["filename_lr"]],
                "abnormal": pl.Series([(code or {}).get("NORM", 0.0) <= 50 for code in codes]).cast(pl.Int8),
                "ectopic_beats": ectopic.cast(pl.Int8),
                CODES: pl.Series([sorted(code or {}) for code in codes], dtype=pl.List(pl.String)),
            }
        )

    def load(self, root: Path, record: Record) -> Raw:
        """Return ``{"ecg": [12 leads, time]}`` in millivolts; see :func:`read_wfdb`."""
        header, signal = record["files"]
        return {"ecg": read_wfdb(root / header, root / signal)}


def _likelihoods(text: str | None) -> dict[str, float] | None:
    """Return statement → likelihood; None if the text is no such dictionary."""
    try:
        return {str(code): float(likelihood) for code, likelihood in ast.literal_eval(text or "").items()}
    except (ValueError, OverflowError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return None


DATASETS: tuple[Dataset, ...] = (PTBXL(),)
