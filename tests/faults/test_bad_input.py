"""Each broken input stops the command with one clear message (file, field, next step) and exit status 1."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from medfed.cli import app as cli
from medfed.core.catalog import DATASETS, MODALITIES
from medfed.data.decode import decode
from medfed.datasets.base import write_twin
from medfed.runs.provenance import data_facts
from medfed.study.data import TwinSpec

NAMES = ("covid-radiography", "rsna-pneumonia", "chexpert", "ptbxl", "yaib-mortality")
TASK = {
    "covid-radiography": "cd",
    "rsna-pneumonia": "lod",
    "chexpert": "ped",
    "ptbxl": "ead",
    "yaib-mortality": "mp",
}
STUDY = """
name = "faults"
train = ["{task}"]
algorithm = "fedavg"
[split]
official = false
[encoders]
image = "vit-mini"
ecg = "conv1d"
vitals = "transformer"
labs = "transformer"
input = "transformer"
output = "transformer"
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twins")
    for name in NAMES:
        write_twin(DATASETS[name], root / name, TwinSpec(num_patients=24))
    return root


def medfed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["medfed", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def unreadable_png(root: Path) -> Path:
    path = next(root.rglob("COVID/images/*.png"))
    path.write_bytes(path.read_bytes()[:60])
    return path


def truncated_dicom(root: Path) -> Path:
    path = next(root.rglob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-500])
    return path


def header_without_signal(root: Path) -> Path:
    path = next(root.rglob("*_lr.dat"))
    path.unlink()
    return path


def parquet_without_column(root: Path) -> Path:
    path = next(root.rglob("dyn.parquet"))
    pl.read_parquet(path).drop("crea").write_parquet(path)
    return path


def csv_names_missing_file(root: Path) -> Path:
    path = next(root.rglob("*.jpg"))
    path.unlink()
    return path


def not_utf8(root: Path) -> Path:
    path = root / "ptbxl" / "ptbxl_database.csv"
    path.write_bytes(path.read_bytes().replace(b"sinus", b"s\xefnus", 1))
    return path


def column_missing(root: Path) -> Path:
    path = root / "rsna-pneumonia" / "stage_2_detailed_class_info.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("class", "klass", 1), encoding="utf-8")
    return path


CASES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("covid-radiography", unreadable_png, "truncated"),
    ("rsna-pneumonia", truncated_dicom, "pixel"),
    ("ptbxl", header_without_signal, ".dat"),
    ("yaib-mortality", parquet_without_column, "crea"),
    ("ptbxl", not_utf8, "UTF-8"),
    ("rsna-pneumonia", column_missing, "class"),
]


@pytest.mark.parametrize(("name", "damage", "word"), CASES, ids=[case[1].__name__ for case in CASES])
def test_a_run_stops_at_the_file_with_one_message_and_the_next_step(
    name: str,
    damage: Callable[[Path], Path],
    word: str,
    pristine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data"
    shutil.copytree(pristine / name, root / name)
    path = damage(root)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(task=TASK[name]), encoding="utf-8")
    status = medfed(monkeypatch, "run", study, "--data-root", root, "--runs", tmp_path / "runs")
    message = "".join(capsys.readouterr().err.split("\n"))
    assert status == 1
    assert message.count("error:") == 1
    assert path.stem.split(".")[0] in message
    assert word.lower() in message.lower()
    assert "next step:" in message
    assert "Traceback" not in message


def test_a_csv_that_names_a_missing_file(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(pristine / "chexpert", root / "chexpert")
    path = csv_names_missing_file(root)
    assert medfed(monkeypatch, "data", "check", root) == 1
    listed = "".join(capsys.readouterr().out.split("\n"))
    assert path.parent.parent.name in listed
    assert "1 problem(s)" in listed


def test_check_lists_all_bad_files_at_once(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    for name in ("covid-radiography", "rsna-pneumonia"):
        shutil.copytree(pristine / name, root / name)
    bad = [unreadable_png(root), truncated_dicom(root), *sorted(root.rglob("Normal/images/*.png"))[:2]]
    for path in bad[2:]:
        path.write_bytes(b"not a picture")
    assert medfed(monkeypatch, "data", "check", root) == 1
    listed = "".join(capsys.readouterr().out.split("\n"))
    assert all(path.name in listed for path in bad)
    assert "3 problem(s)" in listed
    assert "1 problem(s)" in listed


def test_a_patient_in_two_official_splits(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(pristine / "ptbxl", root / "ptbxl")
    path = root / "ptbxl" / "ptbxl_database.csv"
    table = pl.read_csv(path, infer_schema=False)
    patient = table.filter(pl.col("patient_id").is_duplicated())["patient_id"][0]
    rows = table.with_row_index("row").filter(pl.col("patient_id") == patient)["row"]
    folds = table["strat_fold"].to_list()
    folds[rows[0]], folds[rows[1]] = "1", "10"
    table.with_columns(strat_fold=pl.Series(folds)).write_csv(path)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(task="ead"), encoding="utf-8")
    assert medfed(monkeypatch, "run", study, "--data-root", root, "--runs", tmp_path / "runs") == 1
    message = "".join(capsys.readouterr().err.split("\n"))
    assert patient.removesuffix(".0") in message
    assert "private and test" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data-root", "/nowhere/at/all"], ["/nowhere/at/all", "--data-root"]),
        (["--set", "clinet.lr=1"], ["clinet", "did you mean 'client'"]),
        ([], ["[twins]", "--data-root"]),
    ],
    ids=["absent data root", "wrong key", "no data at all"],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(task="cd"), encoding="utf-8")
    assert medfed(monkeypatch, "run", study, "--runs", tmp_path / "runs", *arguments) == 1
    message = "".join(capsys.readouterr().err.split("\n"))
    assert all(word in message for word in words)
    assert not (tmp_path / "runs").exists()


def test_skip_bad_leaves_the_file_out_and_counts_it(pristine: Path, tmp_path: Path) -> None:
    root = tmp_path / "covid-radiography"
    shutil.copytree(pristine / "covid-radiography", root)
    path = unreadable_png(root)
    dataset, modalities = DATASETS["covid-radiography"], {"image": MODALITIES["image"]}
    kept = decode(dataset, root, modalities, skip_bad=True)
    assert [problem.where for problem in kept.skipped] == [str(path)]
    # every other example stays, arrays and index alike
    assert len(kept.index) == len(dataset.index(root)) - 1 == len(kept.samples["image"])
    facts = data_facts({"covid-radiography": kept}, {"covid-radiography": "sum"})
    assert facts["covid-radiography"].skipped[0].where == str(path)
