"""The PTB-XL twin: consistent leads, recognisable findings, native columns, no shortcut to the label."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.data.decode import validate_index
from medfed.datasets.base import write_twin
from medfed.datasets.ptbxl import PTBXL
from medfed.modalities.signal import LEADS
from medfed.study.data import TwinSpec
from medfed.twins.ecg_beats import (
    FINDINGS,
    LEADS_OF_DIPOLE,
    Rhythm,
    Template,
    axis_degrees,
    beats,
    healthy,
    render,
    with_findings,
)
from medfed.twins.ecg_noise import LEADS_OF_ELECTRODES, disturbance, noise
from support.lazily import lazily

metrics = lazily("sklearn.metrics")

DATASET = PTBXL()
LEAD = {name: position for position, name in enumerate(LEADS)}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ptbxl")
    write_twin(DATASET, root, TwinSpec(num_patients=240))
    return root


def one_beat(template: Template) -> np.ndarray:
    """A single beat in twelve leads, R peak at sample 100."""
    return LEADS_OF_DIPOLE @ render([(1.0, 0.85, template)], 200)


def typical() -> Template:
    """The average of many healthy hearts."""
    drawn = [healthy(np.random.default_rng(seed)) for seed in range(200)]
    return Template(*(np.mean([heart[part] for heart in drawn], axis=0) for part in range(3)))


@pytest.mark.parametrize("matrix", [LEADS_OF_DIPOLE, LEADS_OF_ELECTRODES])
def test_limb_leads_obey_einthoven_and_goldberger(matrix: np.ndarray) -> None:
    first, second, third, avr, avl, avf = matrix[:6]
    np.testing.assert_allclose(third, second - first, atol=1e-12)
    np.testing.assert_allclose(avr, -(first + second) / 2, atol=1e-12)
    np.testing.assert_allclose(avl, first - second / 2, atol=1e-12)
    np.testing.assert_allclose(avf, second - first / 2, atol=1e-12)


def test_written_records_obey_einthoven(twin: Path) -> None:
    print(
        "each lead is rounded to 1 µV, so III − (II − I) is at most 3 · 0.5 µV off, and aVR + (I + II)/2 at most 1 µV"
    )
    for record in DATASET.index(twin).head(10).iter_rows(named=True):
        signal = DATASET.load(twin, record)["ecg"]
        assert np.abs(signal[2] - (signal[1] - signal[0])).max() <= 0.0015 + 1e-6
        assert np.abs(signal[3] + (signal[0] + signal[1]) / 2).max() <= 0.001 + 1e-6


def test_a_healthy_heart_looks_healthy() -> None:
    leads = one_beat(typical())
    peak = {name: leads[position, 85:115].max() for name, position in LEAD.items()}
    trough = {name: leads[position, 85:115].min() for name, position in LEAD.items()}
    assert 0.5 < peak["II"] < 2
    assert trough["AVR"] < -0.4
    assert peak["V1"] < -trough["V1"]  # rS in V1
    assert peak["V5"] > -trough["V5"]  # R wins in V5
    assert leads[LEAD["II"], 75:90].max() > 0.05  # P
    assert leads[LEAD["V3"], 120:140].max() > 0.2  # T
    assert -30 < axis_degrees(typical()) < 90


def test_findings_show_where_a_reader_looks() -> None:
    normal = one_beat(typical())

    def change(code: str, lead: str, start: int, stop: int) -> float:
        """Mean change of a lead between two samples after the R peak (10 ms each)."""
        return float(
            (one_beat(with_findings(typical(), [(code, 1.0)])) - normal)[LEAD[lead], 100 + start : 100 + stop].mean()
        )

    assert change("INJIN", "AVF", 8, 16) > 0.1  # ST elevation below …
    assert change("INJIN", "AVL", 8, 16) < -0.05  # … is depression above
    assert change("INJAS", "V2", 8, 16) > 0.1
    assert change("ISCAL", "V5", 8, 16) < -0.05
    assert change("ISCAL", "V5", 24, 32) < -0.1  # T inversion
    assert change("CRBBB", "V1", 4, 9) > 0.2  # R'
    assert change("CRBBB", "V6", 4, 9) < -0.1  # broad S
    assert change("IMI", "AVF", -5, -2) < -0.05  # Q wave
    assert change("ASMI", "V2", -5, -2) < -0.05  # lost r wave
    assert axis_degrees(with_findings(typical(), [("LAFB", 1.0)])) < -30
    assert one_beat(with_findings(typical(), [("LVH", 1.0)]))[LEAD["V5"]].max() > 1.4 * normal[LEAD["V5"]].max()
    wide = with_findings(typical(), [("CLBBB", 1.0)])
    assert (np.abs(one_beat(wide)[LEAD["I"]]) > 0.2).sum() > 1.5 * (np.abs(normal[LEAD["I"]]) > 0.2).sum()


def test_every_finding_changes_the_beat_and_severity_zero_does_not() -> None:
    normal = one_beat(typical())
    for code in FINDINGS:
        assert np.abs(one_beat(with_findings(typical(), [(code, 1.0)])) - normal).max() > 0.05, code
        np.testing.assert_array_equal(one_beat(with_findings(typical(), [(code, 0.0)])), normal)


def test_a_ventricular_beat_comes_early_and_pauses_fully() -> None:
    steady = Rhythm(60, 0.0, 0.0, (), 1.0)
    heart = typical()
    plain = np.array([peak for peak, _, _ in beats(steady, heart, 10, np.random.default_rng(3))])
    ectopic = beats(steady._replace(ectopics=("ventricular",)), heart, 10, np.random.default_rng(3))
    peaks = np.array([peak for peak, _, _ in ectopic])
    moved = np.flatnonzero(peaks != plain)
    print(f"one beat of {len(peaks)} moved, {plain[moved] - peaks[moved]} s early; the rest stay: a full pause")
    assert len(moved) == 1
    assert 0.2 < (plain - peaks)[moved[0]] < 0.5
    beat, normal = ectopic[moved[0]][2], ectopic[moved[0] - 1][2]
    assert beat.width[2] > 2 * normal.width[2]
    assert np.abs(beat.dipole[0]).max() == 0  # no P


def test_atrial_fibrillation_is_irregular_and_without_p() -> None:
    sinus, fibrillating = (Rhythm(80, 0.02, share, (), 1.0) for share in (0.0, 1.0))
    spread = []
    for rhythm in (sinus, fibrillating):
        drawn = beats(rhythm, typical(), 60, np.random.default_rng(0))
        spread.append(np.std(np.diff([peak for peak, _, _ in drawn])))
    assert spread[1] > 3 * spread[0]
    assert np.abs(drawn[0][2].dipole[0]).max() == 0


def test_noise_grows_with_its_level() -> None:
    def size(level: float) -> float:
        rng = np.random.default_rng(1)
        return float(noise(disturbance(level, rng)._replace(burst=None), 1000, rng).std())

    assert size(2.0) == pytest.approx(2 * size(1.0))


def test_equal_specs_write_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    def digest(folder: str, seed: int) -> str:
        DATASET.synthesize(root := tmp_path / folder, TwinSpec(num_patients=6, seed=seed))
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return hashlib.sha256(
            b"".join(bytes(str(f.relative_to(root)), "ascii") + f.read_bytes() for f in files)
        ).hexdigest()

    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_columns_are_the_originals(twin: Path, real_data: Path) -> None:
    columns = [pl.read_csv(root / "ptbxl_database.csv", n_rows=1).columns for root in (twin, real_data / "ptbxl")]
    assert columns[0] == columns[1]
    assert len(columns[0]) == 28


def test_shares_are_realistic(twin: Path) -> None:
    index = DATASET.index(twin)
    validate_index(DATASET, twin, index)
    twice = index.group_by("patient").len()["len"]
    print(f"abnormal {index['abnormal'].mean()}, ectopic {index['ectopic_beats'].mean()}, twice {(twice > 1).mean()}")
    assert 0.35 < index["abnormal"].mean() < 0.55
    assert 0.08 < index["ectopic_beats"].mean() < 0.22
    assert 0.5 < index.filter(pl.col("ectopic_beats") == 1)["abnormal"].mean() < 0.9
    assert (twice > 1).mean() >= 0.2
    assert index["site"].n_unique() == 4
    assert index["split"].n_unique() == 4


def test_identity_and_place_do_not_give_the_label_away(twin: Path) -> None:
    """Only the signal may: not the order of records, not the patient's number, not the site."""
    index = DATASET.index(twin)
    number = index["example"].str.strip_prefix("ptbxl:").cast(pl.Int64)
    patient = index["patient"].str.strip_prefix("ptbxl:").cast(pl.Int64)
    for target in DATASET.targets:
        positive = index[target].sum()
        bound = 3 * np.sqrt((len(index) + 1) / (12 * positive * (len(index) - positive)))
        print(f"{target}: AUROC of a column that knows nothing is 0.5 ± {bound:.3f} (three standard errors)")
        for column in (number, patient, index["site"].cast(pl.Int64)):
            assert abs(metrics.roc_auc_score(index[target], column) - 0.5) < bound
