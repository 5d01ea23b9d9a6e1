"""Symile-MIMIC: the native arrays and tables as they lie on disk, the twin, and files that must be refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from medfed.core.errors import DataError
from medfed.core.rng import numpy_rng
from medfed.data.decode import decode
from medfed.datasets.base import write_twin
from medfed.datasets.decoded import Decoded
from medfed.datasets.symile_mimic import SymileMIMIC
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import LEADS, SignalModality
from medfed.modalities.timeseries import LabPercentiles
from medfed.study.data import TwinSpec
from medfed.twins.symile import draw_physiology

DATASET = SymileMIMIC()
MODALITIES = {"image": ImageModality(size=16), "ecg": SignalModality(length=200), "lab-percentiles": LabPercentiles()}
SPEC = TwinSpec(num_patients=40, image_size=32, seed=3)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("symile") / "data" / "symile-mimic"
    write_twin(DATASET, root, SPEC)
    return root


@pytest.fixture
def copy(twin: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(twin, tmp_path / "copy"))


def decoded(root: Path) -> Decoded:
    return decode(DATASET, root, MODALITIES)


def test_a_twin_decodes_whole(twin: Path) -> None:
    assert DATASET.locate(twin.parents[1]) == twin
    data = decoded(twin)
    assert data.card.synthetic
    assert all(present.all() for present in data.present.values())
    assert set(data.index["split"]) == {"train", "development", "test"}
    assert data.index["patient"].n_unique() == 40
    assert data.index["patient"].str.starts_with("mimic:").all()
    assert set(data.target("finding").tolist()) == {0, 1}
    assert list(DATASET.check(twin)) == [None] * len(data.index)


def test_a_twin_is_a_function_of_its_seed(twin: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        write_twin(DATASET, tmp_path / name, SPEC.model_copy(update={"seed": seed}))
    file = "data_npy/test/cxr_test.npy"
    one, again, other = (root.joinpath(file).read_bytes() for root in (twin, tmp_path / "again", tmp_path / "other"))
    assert one == again
    assert one != other


def test_a_hopeless_twin_shows_nothing(tmp_path: Path) -> None:
    """At difficulty 1 the noiseless means of two opposite signs are the same film."""
    write_twin(DATASET, tmp_path, SPEC.model_copy(update={"difficulty": 1.0}))
    films = np.load(tmp_path / "data_npy/train/cxr_train.npy")[:, 0].mean(0)
    left, right = films[:, :16].mean(), films[:, 16:].mean()
    blood = np.load(tmp_path / "data_npy/train/labs_percentiles_train.npy")
    tests = np.corrcoef(blood.T)[np.triu_indices(50, 1)]
    assert left == pytest.approx(right, abs=0.1)
    assert abs(tests.mean()) < 0.05


def test_the_test_split_keeps_the_releases_candidates(twin: Path) -> None:
    index = DATASET.index(twin)
    table = pl.read_csv(twin / "test.csv")
    queries = index.filter(pl.col("split") == "test")
    assert len(queries) == table["label"].sum()
    for example, candidates in queries.select("example", "candidates").iter_rows():
        mine = table.filter(pl.col("label_hadm_id") == int(example.removeprefix("symile-mimic:")))
        assert set(candidates) == {f"symile-mimic:{number}" for number in mine["hadm_id"]}
        assert example in candidates
        assert set(candidates) <= set(queries["example"])
    assert index.filter(pl.col("split") != "test")["candidates"].null_count() == len(index) - len(queries)


def test_numbers_that_pandas_wrote_as_floats_are_read(copy: Path) -> None:
    before = DATASET.index(copy)
    for name in ("train", "val", "test"):
        pl.read_csv(copy / f"{name}.csv").with_columns(pl.col("subject_id", "hadm_id").cast(pl.Float64)).write_csv(
            copy / f"{name}.csv"
        )
    assert DATASET.index(copy).equals(before)


def test_arrays_become_physical_samples(copy: Path) -> None:
    """ImageNet's normalisation is undone, leads are put in our order (the release has aVF before aVL), 500 → 100 Hz."""
    folder = copy / "data_npy" / "val"
    count = len(np.load(folder / "hadm_id_val.npy"))
    grey, mean, std = np.linspace(0, 1, 20 * 30).reshape(20, 30), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    channels = np.stack([(grey - m) / s for m, s in zip(mean, std, strict=True)]).astype(np.float32)
    np.save(folder / "cxr_val.npy", np.broadcast_to(channels, (count, 3, 20, 30)))
    native = ("I", "II", "III", "AVR", "AVF", "AVL", "V1", "V2", "V3", "V4", "V5", "V6")
    level = {lead: number / 12 for number, lead in enumerate(native)}
    constant = np.array([level[lead] for lead in native], np.float32)
    np.save(folder / "ecg_val.npy", np.broadcast_to(constant, (count, 1, 5000, 12)))
    record = DATASET.index(copy).filter(pl.col("split") == "development").row(1, named=True)
    loaded = DATASET.load(copy, record)
    np.testing.assert_allclose(loaded["image"], grey, atol=1e-6)
    assert loaded["ecg"].shape == (12, 1000)
    np.testing.assert_allclose(loaded["ecg"][:, 500], [level[lead] for lead in LEADS], atol=1e-5)
    np.testing.assert_array_equal(loaded["lab-percentiles"][0], np.load(folder / "labs_percentiles_val.npy")[1])
    np.testing.assert_array_equal(loaded["lab-percentiles"][1], np.load(folder / "labs_missingness_val.npy")[1])


CXR, ECG = "data_npy/train/cxr_train.npy", "data_npy/train/ecg_train.npy"
LABS, FLAGS = "data_npy/train/labs_percentiles_train.npy", "data_npy/train/labs_missingness_train.npy"


def saved(array: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: np.save(path, array(np.load(path)), allow_pickle=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (CXR, cut, "not a whole .npy array"),
        (ECG, cut, "not a whole .npy array"),
        (LABS, cut, "not a whole .npy array"),
        (CXR, Path.unlink, "missing"),
        (CXR, lambda path: path.write_bytes(b"<html>sign in</html>"), "not a whole .npy array"),
        (LABS, archive, "npz archive"),
        (FLAGS, saved(lambda array: array.astype(object)), "never unpickled"),
        (CXR, saved(lambda array: array[:, 0]), "shape"),
        (ECG, saved(lambda array: array[..., :8]), "shape"),
        (LABS, saved(lambda array: array[:, :49]), "shape"),
        (LABS, saved(lambda array: (100 * array).astype(int)), "int64"),
        (FLAGS, saved(lambda array: array + 1), r"\[0, 1\]"),
        (LABS, saved(lambda array: 100 * array), r"\[0, 1\]"),
        (CXR, saved(lambda array: array + 5), "ImageNet"),
        (CXR, saved(lambda array: array * np.nan), "ImageNet"),
        (ECG, saved(lambda array: array * 1000), r"\[-1, 1\]"),
    ],
)
def test_a_bad_array_is_refused(copy: Path, file: str, damage: Callable[[Path], None], words: str) -> None:
    damage(copy / file)
    with pytest.raises(DataError, match=words) as caught:
        decoded(copy)
    assert file in str(caught.value)
    assert caught.value.hint


def test_arrays_with_fewer_rows_than_the_table_are_refused(copy: Path) -> None:
    np.save(copy / LABS, np.load(copy / LABS)[:-1])
    with pytest.raises(DataError, match="rows, but the table names row"):
        decoded(copy)


def edited(file: str, change: pl.Expr) -> Callable[[Path], None]:
    return lambda root: pl.read_csv(root / file).with_columns(change).write_csv(root / file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edited("train.csv", pl.col("hadm_id").reverse()), "rows are not those of"),
        (edited("train.csv", pl.lit("P7").alias("subject_id")), "'subject_id', line 2: 'P7' is not a whole number"),
        (edited("train.csv", pl.lit(1.5).alias("hadm_id")), "'hadm_id', line 2: '1.5' is not a whole number"),
        (edited("test.csv", pl.col("label_hadm_id") + 1), "not among its own candidates"),
        (lambda root: (root / "val.csv").unlink(), "missing"),
        (
            lambda root: pl.read_csv(root / "test.csv").drop("label").write_csv(root / "test.csv"),
            "column 'label' is missing",
        ),
    ],
)
def test_a_bad_table_is_refused(copy: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(copy)
    with pytest.raises(DataError, match=words):
        DATASET.index(copy)


def test_film_signs_are_an_exclusive_or_that_no_pair_knows() -> None:
    drawn = [draw_physiology(numpy_rng("physiology", number)) for number in range(4000)]
    ecg, blood, film = (np.array([getattr(body, name) for body in drawn]) for name in ("ecg", "blood", "film"))
    np.testing.assert_array_equal(film, np.where((ecg > 0) != (blood > 0), 1, -1))
    for one, two in ((ecg, blood), (ecg, film), (blood, film)):
        between = np.corrcoef(one.T, two.T)[:3, 3:]
        assert np.abs(between).max() < 5 / np.sqrt(4000)  # five standard errors of no correlation
