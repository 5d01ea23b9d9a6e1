"""YAIB cohorts: both layouts, hours, outcomes, and patients shared between cohorts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.data.decode import validate_index
from medfed.datasets.yaib import Yaib, YaibMortality, YaibSepsis
from support.native_files import dynamic, write_cohort

MORTALITY, SEPSIS = YaibMortality(), YaibSepsis()
OUTCOME = pl.DataFrame({"stay_id": [5, 3], "label": [1, 0]})


def hourly(*rows: tuple[int, int, bool]) -> pl.DataFrame:
    stays, hours, labels = zip(*rows, strict=True)
    return pl.DataFrame({"stay_id": stays, "time": [timedelta(hours=hour) for hour in hours], "label": labels})


def test_both_layouts_are_found_and_read(tmp_path: Path) -> None:
    dyn = dynamic([(3, 0), (5, 0)], {"hr": [70.0, 90.0]})
    write_cohort(tmp_path / "a" / "mortality24" / "x_demo", dyn, OUTCOME)
    write_cohort(tmp_path / "b" / "mortality24", dyn, OUTCOME)
    nested, flat = MORTALITY.locate(tmp_path / "a"), MORTALITY.locate(tmp_path / "b")
    assert nested == tmp_path / "a"
    assert flat == tmp_path / "b"
    first = MORTALITY.index(nested)
    assert first.select("example", "patient", "site", "split", "mortality").rows() == [
        ("x_demo:3", "x_demo:3", "x_demo", None, 0),
        ("x_demo:5", "x_demo:5", "x_demo", None, 1),
    ]
    second = MORTALITY.index(flat)
    assert second.select("example", "site", "mortality").rows() == [("yaib:3", None, 0), ("yaib:5", None, 1)]
    for root, index in ((nested, first), (flat, second)):
        assert all((root / file).is_file() for file in index["files"].explode())
        assert MORTALITY.load(root, index.row(1, named=True))["vitals"][0, 0] == 90


def test_hours_are_binned_and_repeated_hours_averaged(tmp_path: Path) -> None:
    rows = [(3, 0), (3, 1), (3, 1.5), (3, 1.9), (3, 24)]
    dyn = dynamic(rows, {"hr": [60.0, 70.0, 80.0, None, 999.0], "fio2": [None, None, None, 40.0, None]})
    write_cohort(tmp_path / "mortality24" / "d", dyn, OUTCOME.filter(pl.col("stay_id") == 3))
    loaded = MORTALITY.load(tmp_path, MORTALITY.index(tmp_path).row(0, named=True))
    print("hour 1 holds 70, 80 and nothing: (70 + 80) / 2 = 75; hour 24 is the 25th and is left out")
    assert {name: values.shape for name, values in loaded.items()} == {
        "vitals": (24, 7),
        "labs": (24, 39),
        "input": (24, 1),
        "output": (24, 1),
    }
    np.testing.assert_array_equal(loaded["vitals"][:3, 0], [60, 75, np.nan])
    np.testing.assert_array_equal(loaded["input"][:3, 0], [np.nan, 40, np.nan])
    assert np.nanmax(loaded["vitals"]) == 75


def test_any_onset_makes_a_stay_septic(tmp_path: Path) -> None:
    dyn = dynamic([(3, 0), (3, 1), (5, 0)], {"hr": [60.0, 61.0, 62.0]})
    write_cohort(tmp_path / "sepsis" / "d", dyn, hourly((3, 0, False), (3, 1, True), (5, 0, False)))
    assert SEPSIS.index(tmp_path).select("example", "sepsis").rows() == [("d:3", 1), ("d:5", 0)]


def test_a_rewritten_table_is_read_anew(tmp_path: Path) -> None:
    folder = tmp_path / "mortality24" / "d"
    outcome = OUTCOME.filter(pl.col("stay_id") == 3)
    write_cohort(folder, dynamic([(3, 0)], {"hr": [60.0]}), outcome)
    record = MORTALITY.index(tmp_path).row(0, named=True)
    assert MORTALITY.load(tmp_path, record)["vitals"][0, 0] == 60
    write_cohort(folder, dynamic([(3, 0), (3, 1)], {"hr": [61.0, 62.0]}), outcome)
    assert MORTALITY.load(tmp_path, record)["vitals"][0, 0] == 61


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        (MORTALITY, {"eicu_demo": (988, 51), "mimic_demo": (71, 15)}),
        (SEPSIS, {"eicu_demo": (637, 42), "mimic_demo": (82, 1)}),
    ],
)
def test_real_extract(real_data: Path, dataset: Yaib, counts: dict[str, tuple[int, int]]) -> None:
    root = dataset.locate(real_data)
    index = dataset.index(root)
    validate_index(dataset, root, index)
    target = dataset.targets[0]
    found = index.group_by("site").agg(pl.len(), pl.col(target).sum().alias("positive"))
    assert {site: (stays, positive) for site, stays, positive in found.rows()} == counts
    seen = [np.isfinite(dataset.load(root, row)["vitals"]).mean() for row in index.head(50).iter_rows(named=True)]
    assert np.mean(seen) > 0.4


def test_a_stay_in_both_real_cohorts_is_one_patient(real_data: Path) -> None:
    root = MORTALITY.locate(real_data)
    shared = set(MORTALITY.index(root)["patient"]) & set(SEPSIS.index(root)["patient"])
    print("374 of the eICU stays are in both cohorts, and some of MIMIC's")
    assert len([patient for patient in shared if patient.startswith("eicu_demo")]) == 374
