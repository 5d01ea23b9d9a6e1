"""The ICU twin: native tables, coupled physiology, informative ordering, shared stays, no shortcut to the label."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.data.decode import validate_index
from medfed.datasets.base import write_twin
from medfed.datasets.yaib import Yaib, YaibMortality, YaibSepsis
from medfed.study.data import TwinSpec
from medfed.twins.icu_physiology import BURDENS, SHOCK, draw_stays, measure, observed
from support.lazily import lazily
from support.native_files import VARIABLES

metrics = lazily("sklearn.metrics")

SPEC = TwinSpec(num_patients=600)
MORTALITY, SEPSIS = YaibMortality(), YaibSepsis()
Roots = dict[str, Path]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    roots = {}
    for dataset in (MORTALITY, SEPSIS):
        roots[dataset.cohort] = tmp_path_factory.mktemp(dataset.cohort)
        write_twin(dataset, roots[dataset.cohort], SPEC)
    return roots


def table(twins: Roots, cohort: str, file: str) -> pl.DataFrame:
    """A table of both databases."""
    return pl.concat([pl.read_parquet(path) for path in sorted(twins[cohort].glob(f"{cohort}/*/{file}.parquet"))])


def standard_errors(target: pl.Series, bound: float = 3) -> float:
    positive = target.sum()
    return bound * float(np.sqrt((len(target) + 1) / (12 * positive * (len(target) - positive))))


@pytest.mark.parametrize("cohort", ["mortality24", "sepsis"])
@pytest.mark.parametrize("file", ["dyn", "outc", "sta"])
def test_schemas_are_the_originals(twins: Roots, real_data: Path, cohort: str, file: str) -> None:
    original = pl.read_parquet_schema(real_data / "yaib" / "demo_data" / cohort / "eicu_demo" / f"{file}.parquet")
    written = pl.read_parquet_schema(twins[cohort] / cohort / "eicu_twin" / f"{file}.parquet")
    assert list(written.items()) == list(original.items())


@pytest.mark.parametrize("dataset", [MORTALITY, SEPSIS])
def test_equal_specs_write_equal_bytes_and_another_seed_others(tmp_path: Path, dataset: Yaib) -> None:
    def digest(folder: str, seed: int) -> str:
        dataset.synthesize(root := tmp_path / folder, TwinSpec(num_patients=30, seed=seed))
        return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(root.rglob("*.parquet")))).hexdigest()

    assert digest("a", 0) == digest("b", 0) != digest("c", 1)


def test_rows_are_as_in_the_originals(twins: Roots) -> None:
    assert set(table(twins, "mortality24", "dyn").group_by("stay_id").len()["len"]) == {25}
    septic = table(twins, "sepsis", "outc").with_columns(hour=pl.col("time").dt.total_hours())
    lengths = septic.group_by("stay_id").agg(pl.len(), pl.col("hour").max())
    assert lengths["len"].min() >= 7
    assert (lengths["len"] == lengths["hour"] + 1).all()
    onset = septic.filter("label").group_by("stay_id").agg(pl.len(), pl.col("hour").max().alias("last"))
    ends = onset.join(lengths.select("stay_id", pl.col("hour").alias("end")), on="stay_id")
    print("the label runs from six hours before the onset to six after, where the stay ends: at most 13 hours")
    assert (ends["last"] == ends["end"]).all()
    assert ends["len"].max() == 13
    assert ends["len"].min() >= 7


def test_the_cohorts_share_stays_with_the_same_series(twins: Roots) -> None:
    keys = ["stay_id", "time"]
    first, second = (table(twins, cohort, "dyn") for cohort in ("mortality24", "sepsis"))
    shared = set(first["stay_id"]) & set(second["stay_id"])
    assert len(shared) == SPEC.num_patients // 2
    day = pl.col("time").dt.total_hours() < 25
    both = [part.filter(pl.col("stay_id").is_in(shared) & day).sort(keys) for part in (first, second)]
    assert both[0].equals(both[1])
    patients = [set(dataset.index(twins[dataset.cohort])["patient"]) for dataset in (MORTALITY, SEPSIS)]
    assert len(patients[0] & patients[1]) == len(shared)


def test_outcomes_are_frequent_enough_and_share_causes(twins: Roots) -> None:
    died, septic = MORTALITY.index(twins["mortality24"]), SEPSIS.index(twins["sepsis"])
    for dataset, index in ((MORTALITY, died), (SEPSIS, septic)):
        validate_index(dataset, twins[dataset.cohort], index)
    both = died.join(septic, on="example")
    print(f"died {died['mortality'].mean():.3f}, septic {septic['sepsis'].mean():.3f}")
    assert 0.12 < died["mortality"].mean() < 0.23
    assert 0.15 < septic["sepsis"].mean() < 0.27
    rate = both.group_by("sepsis").agg(pl.col("mortality").mean()).sort("sepsis")["mortality"]
    assert rate[1] > 1.5 * rate[0]


def test_ids_lengths_and_databases_do_not_give_the_label_away(twins: Roots) -> None:
    """Only what was measured, and that it was, may: not the stay's number or length, not the database."""
    length = table(twins, "sepsis", "dyn").group_by("stay_id").len().cast({"stay_id": pl.Int64})
    septic = SEPSIS.index(twins["sepsis"]).join(length, on="stay_id")
    died = MORTALITY.index(twins["mortality24"])
    for target, columns in (
        (septic["sepsis"], (septic["len"], septic["stay_id"], septic["site"] == "eicu_twin")),
        (died["mortality"], (died["stay_id"], died["site"] == "eicu_twin")),
    ):
        bound = standard_errors(target)
        print(f"{target.name}: AUROC of a column that knows nothing is 0.5 ± {bound:.3f} (three standard errors)")
        for column in columns:
            assert abs(metrics.roc_auc_score(target, column) - 0.5) < bound, column.name
    assert set(table(twins, "sepsis", "dyn").columns) == {"stay_id", "time", *VARIABLES}


def test_the_physiology_is_coupled() -> None:
    rng = np.random.default_rng(0)
    values = measure(draw_stays(300, False, 0.5, rng).burden, rng)
    assert sorted(values) == sorted(VARIABLES)
    third = values["dbp"] + (values["sbp"] - values["dbp"]) / 3
    assert np.corrcoef(third.ravel(), values["map"].ravel())[0, 1] > 0.98
    unclipped = (values["ph"] > 6.8) & (values["ph"] < 7.7) & (values["pco2"] > 15) & (values["bicar"] > 4)
    print("Henderson-Hasselbalch: pH = 6.1 + log10(HCO3 / (0.0307 pCO2)); HCO3 and pCO2 are rounded to 1")
    expected = 6.1 + np.log10(values["bicar"] / (0.0307 * values["pco2"]))
    assert np.abs(values["ph"] - expected)[unclipped].max() < 0.1
    assert np.corrcoef(values["ph"][unclipped], expected[unclipped])[0, 1] > 0.98
    gas = values["po2"] / values["fio2"]
    assert np.corrcoef(np.log(gas).ravel(), values["fio2"].ravel())[0, 1] < -0.5  # oxygen is given where it is needed


@pytest.mark.parametrize(
    ("burden", "rises", "falls"),
    [
        ("inflammation", ("temp", "wbc", "crp", "bnd", "hr"), ("lymph", "alb")),
        ("shock", ("lact", "hr"), ("map", "sbp", "bicar", "ph", "urine")),
        ("lung", ("resp", "fio2", "pco2"), ("o2sat",)),
        ("kidney", ("crea", "bun", "k", "phos"), ("urine", "bicar")),
        ("liver", ("bili", "alt", "ast", "inr_pt"), ("alb", "plt")),
        ("heart", ("tnt", "ckmb", "ck"), ()),
    ],
)
def test_a_failing_organ_shows(burden: str, rises: tuple[str, ...], falls: tuple[str, ...]) -> None:
    calm = np.zeros((40, 24, len(BURDENS)))
    ill = calm.copy()
    ill[..., BURDENS.index(burden)] = 2.0
    before, after = (measure(state, np.random.default_rng(0)) for state in (calm, ill))
    for name in rises:
        assert after[name].mean() > before[name].mean(), name
    for name in falls:
        assert after[name].mean() < before[name].mean(), name


def test_the_sicker_are_measured_more() -> None:
    calm = np.full((400, 24, len(BURDENS)), 0.1)
    ill = calm.copy()
    ill[..., SHOCK] = 2.5
    database = np.zeros(400, int)
    before, after = (observed(database, state, np.random.default_rng(0)) for state in (calm, ill))
    for name in ("lact", "crea", "wbc"):
        assert after[name].mean() > 1.2 * before[name].mean(), name


def test_a_twin_is_as_sparse_as_the_original(twins: Roots, real_data: Path) -> None:
    original = pl.read_parquet(real_data / "yaib" / "demo_data" / "mortality24" / "eicu_demo" / "dyn.parquet")
    written = pl.read_parquet(twins["mortality24"] / "mortality24" / "eicu_twin" / "dyn.parquet")
    for name in VARIABLES:
        shares = [part[name].is_not_null().mean() for part in (original, written)]
        medians = [part[name].median() for part in (original, written)]
        print(f"{name}: observed {shares[0]:.3f} and {shares[1]:.3f}, median {medians[0]:.3g} and {medians[1]:.3g}")
        assert shares[1] < 2.5 * shares[0] + 0.01, name
        assert shares[0] < 2.5 * shares[1] + 0.01, name
        spread = original[name].quantile(0.75) - original[name].quantile(0.25)
        assert abs(medians[1] - medians[0]) <= max(spread, 0.1), name
