"""MIMIC-IV and eICU: hours since admission, units, first stays, outcomes; nothing after the first day is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.core.catalog import MODALITIES, TASKS
from medfed.data.cohort import build_cohort
from medfed.data.decode import decode, validate_index
from medfed.data.layout import Division
from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.eicu import LABNAMES, Eicu
from medfed.datasets.first_day import UNITS, first_day
from medfed.datasets.mimic_iv import ITEMS, MimicIV
from medfed.modalities.timeseries import LABS
from medfed.study.data import PartitionSettings, SplitSettings, TwinSpec

MIMIC, EICU = MimicIV(), Eicu()
INTIME = "2150-03-01 10:30:00"
Event = tuple[str, str, str, str]
"""itemid or labname, time or minute, value, unit."""


def write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_csv(path)


def write_mimic(root: Path, events: Sequence[Event], **stay: str) -> Path:
    """Write one patient with one admission; ``stay`` replaces cells."""
    ids = {"subject_id": "11", "hadm_id": "22", "stay_id": "33", "intime": INTIME}
    write(root / "icu" / "icustays.csv", [ids | {k: v for k, v in stay.items() if k in ids}])
    write(root / "hosp" / "admissions.csv", [{"hadm_id": "22", "hospital_expire_flag": "1"}])
    person = {"subject_id": "11", "gender": "F", "anchor_age": "60", "anchor_year": "2147"}
    write(root / "hosp" / "patients.csv", [person])
    columns = ("itemid", "charttime", "valuenum", "valueuom")
    rows = [{"subject_id": "11", **dict(zip(columns, event, strict=True))} for event in events]
    write(root / "hosp" / "labevents.csv", rows)
    return root


def write_eicu(root: Path, events: Sequence[Event], *stays: Mapping[str, str]) -> Path:
    row = {
        "patientunitstayid": "7",
        "patienthealthsystemstayid": "70",
        "uniquepid": "002-1",
        "hospitalid": "59",
        "gender": "Female",
        "age": "> 89",
        "hospitaldischargestatus": "Expired",
        "unitvisitnumber": "1",
    }
    write(root / "patient.csv", [row | stay for stay in stays or ({},)])
    columns = ("labname", "labresultoffset", "labresult", "labmeasurenamesystem")
    rows = [{"patientunitstayid": "7", **dict(zip(columns, event, strict=True))} for event in events]
    write(root / "lab.csv", rows)
    return root


def measured(loaded: Mapping[str, np.ndarray]) -> dict[tuple[int, str], float]:
    """Return (hour, variable) → value."""
    labs = loaded["labs"]
    return {
        (int(hour), LABS[place]): float(labs[hour, place])
        for hour, place in zip(*np.nonzero(~np.isnan(labs)), strict=False)
    }


def first(dataset: Dataset, root: Path) -> dict[str, np.ndarray]:
    return dataset.load(root, dataset.index(root).row(0, named=True))


def test_every_laboratory_variable_has_a_unit_and_a_source_in_both_databases() -> None:
    assert set(UNITS) == set(ITEMS.values()) == set(LABNAMES.values()) == set(LABS)


def test_mimic_hours_count_from_admission_to_the_unit(tmp_path: Path) -> None:
    events = [
        ("50813", "2150-03-01 10:29:00", "1", "mmol/L"),
        ("50813", "2150-03-01 10:30:00", "2", "mmol/L"),
        ("50813", "2150-03-01 11:29:00", "4", "mmol/L"),
        ("50813", "2150-03-01 11:30:00", "5", "mmol/L"),
        ("50813", "2150-03-02 10:29:00", "6", "mmol/L"),
        ("50813", "2150-03-02 10:30:00", "7", "mmol/L"),
        ("99999", "2150-03-01 12:00:00", "8", "mmol/L"),
    ]
    root = write_mimic(tmp_path, events)
    print("hour 0 holds 2 and 4; one minute before admission and hour 24 are left out")
    assert measured(first(MIMIC, root)) == {(0, "lact"): 3, (1, "lact"): 5, (23, "lact"): 6}
    record = MIMIC.index(root).row(0, named=True)
    assert (record["example"], record["patient"], record["mortality"]) == ("mimic-iv:33", "mimic:11", 1)
    np.testing.assert_array_equal(first(MIMIC, root)["person"], [[63, 1]])


def test_an_admissions_second_unit_stay_is_not_an_example(tmp_path: Path) -> None:
    root = write_mimic(tmp_path, [("50813", INTIME, "1", "mmol/L")])
    ids = {"subject_id": "11", "hadm_id": "22"}
    later = {**ids, "stay_id": "12", "intime": "2150-03-09 00:00:00"}
    write(root / "icu" / "icustays.csv", [later, {**ids, "stay_id": "33", "intime": INTIME}])
    assert MIMIC.index(root)["stay_id"].to_list() == ["33"]


def test_eicu_hours_units_and_age(tmp_path: Path) -> None:
    events = [
        ("lactate", "-1", "9", "mmol/L"),
        ("lactate", "59", "2", "mmol/L"),
        ("ionized calcium", "60", "4.008", "mg/dL"),
        ("CRP", "61", "5", "mg/dL"),
        ("bedside glucose", "120", "100", "mg/dL"),
        ("glucose", "130", "110", "mg/dL"),
        ("potassium", "150", "4", "mg/dL"),
        ("sodium", "1440", "140", "mmol/L"),
    ]
    root = write_eicu(tmp_path, events)
    expected = {(0, "lact"): 2, (1, "cai"): 1, (1, "crp"): 50, (2, "glu"): 105}
    print("4.008 mg/dl of calcium are 1 mmol/l; potassium in mg/dl is no potassium; minute 1440 is hour 24")
    assert measured(first(EICU, root)) == pytest.approx(expected)
    np.testing.assert_array_equal(first(EICU, root)["person"], [[90, 1]])


def test_eicu_takes_the_first_unit_stay_and_knows_what_is_unknown(tmp_path: Path) -> None:
    stays = (
        {"patientunitstayid": "6", "unitvisitnumber": "2"},
        {"patientunitstayid": "7", "unitvisitnumber": "1", "gender": "", "age": ""},
        {"patientunitstayid": "8", "patienthealthsystemstayid": "80", "hospitaldischargestatus": "Alive"},
        {"patientunitstayid": "9", "patienthealthsystemstayid": "90", "hospitaldischargestatus": ""},
    )
    root = write_eicu(tmp_path, [("lactate", "5", "2", "mmol/L")], *stays)
    index = EICU.index(root)
    assert index.select("example", "site", "mortality").rows() == [
        ("eicu:7", "59", 1),
        ("eicu:8", "59", 0),
        ("eicu:9", "59", None),
    ]
    assert np.isnan(first(EICU, root)["person"]).all()
    assert set(EICU.load(root, index.row(1, named=True))) == {"person"}, "no value, no series"


def test_a_rewritten_table_is_read_anew(tmp_path: Path) -> None:
    root = write_eicu(tmp_path, [("lactate", "5", "2", "mmol/L")])
    assert measured(first(EICU, root)) == {(0, "lact"): 2}
    write_eicu(tmp_path, [("lactate", "5", "2", "mmol/L"), ("lactate", "65", "3", "mmol/L")])
    assert measured(first(EICU, root)) == {(0, "lact"): 2, (1, "lact"): 3}


def test_no_events_are_no_series() -> None:
    schema = {"stay": pl.Utf8, "minute": pl.Int64, "variable": pl.Utf8, "unit": pl.Utf8, "value": pl.Float64}
    assert first_day(pl.DataFrame(schema=schema)).of("7") is None


def test_the_twins_hospitals_differ_in_size_and_some_clients_hold_one_stay(tmp_path: Path) -> None:
    write_twin(EICU, tmp_path, TwinSpec(num_patients=200))
    task = TASKS["mortality-eicu"]
    data = {"eicu": decode(EICU, tmp_path, MODALITIES)}
    natural = PartitionSettings(scheme="natural")
    cohort = build_cohort(data, Division([task], [], MODALITIES, SplitSettings(), natural, 0))
    sizes = sorted(len(tasks[task.name]) for tasks in cohort.clients.values())
    assert sizes[0] == 1
    assert sizes[-1] > 10
    assert len(sizes) > 10
    assert data["eicu"].index["patient"].n_unique() < len(data["eicu"].index)


@pytest.mark.parametrize(
    ("dataset", "folder", "stays", "died", "sites"),
    [(MIMIC, "mimic-iv-demo-2.2", 88, None, 1), (EICU, "eicu-demo", 106, None, 63)],
    ids=["mimic-iv", "eicu"],
)
def test_real_extract(real_data: Path, dataset: Dataset, folder: str, stays: int, died: int | None, sites: int) -> None:
    root = dataset.locate(real_data)
    assert root == real_data / folder
    index = dataset.index(root)
    validate_index(dataset, root, index)
    assert len(index) == stays
    assert index["site"].n_unique() == sites
    assert 0 < index["mortality"].sum() < 15
    decoded = decode(dataset, root, MODALITIES)
    assert decoded.present["person"].all()
    assert decoded.present["labs"].mean() > 0.8
    assert 18 <= decoded.samples["person"][:, 0, 0].max() <= 100
    series = decoded.samples["labs"]
    potassium = series[..., LABS.index("k")][series[..., len(LABS) + LABS.index("k")] > 0]
    assert 3.5 < np.median(potassium) < 5
