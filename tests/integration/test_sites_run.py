"""A federation of folders end to end: on twins, on folders, twice, and after SIGKILL: the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfed.cli.app import app
from support.checksums import checksums
from support.planted_faults import Fault
from support.processes import run

STUDY = """
name = "small-sites"
job = "benchmark"
train = ["cd", "mp"]
baselines = ["local", "centralised"]
[algorithm]
name = "scaffold"
option = "II"
[twins]
num_patients = 40
image_size = 64
[partition]
scheme = "sites"
num_clients = 2
holdings.site-1 = ["yaib-mortality"]
[rounds]
num_rounds = 2
[encoders]
image = "vit-mini"
vitals = "transformer"
labs = "transformer"
input = "transformer"
output = "transformer"
[client]
optimizer = "sgd"
lr = 0.05
[evaluation]
num_resamples = 20
"""


def study(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "small.toml").write_text(STUDY, encoding="utf-8")
    return place / "small.toml"


def start(place: Path, cache: Path, *options: str, kill: tuple[str, int] | None = None) -> Path:
    """Run the study in ``place``; return its run folder."""
    command = ["run", str(study(place)), "--runs", str(place / "runs"), "--cache", str(cache), *options]
    done = run(command, place / "log", *([Fault(*kill)] if kill else []))
    assert done.status == (-signal.SIGKILL if kill else 0), done.text
    (found,) = (place / "runs" / "small-sites").iterdir()
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    return start(tmp_path_factory.mktemp("whole"), cache)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folders")
    made = CliRunner().invoke(app, ["data", "synth", "--study", str(study(place)), "--out", str(place / "data")])
    assert made.exit_code == 0, made.output
    return place / "data"


def test_every_site_scores_the_last_model_and_the_baselines(whole: Path) -> None:
    found = json.loads((whole / "sites.json").read_text(encoding="utf-8"))
    assert found["failures"] == []
    assert found["scores"].keys() == {"federated", "local", "centralised"}
    for sites in found["scores"].values():
        assert {site: set(tasks) for site, tasks in sites.items()} == {"site-0": {"cd", "mp"}, "site-1": {"mp"}}
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "At the sites" in page
    assert "site-1" in page


def test_a_run_on_the_folders_is_the_run_on_the_twins(whole: Path, root: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in root.iterdir()) == ["server", "site-0", "site-1"]
    assert sorted(path.name for path in (root / "site-1").iterdir()) == ["yaib-mortality"]
    made = start(tmp_path, tmp_path / "unused", "--data-root", str(root))
    assert made.name == whole.name
    assert checksums(made) == checksums(whole)


@pytest.mark.parametrize("kill", [("medfed.federated.client:Client.train", 9), ("medfed.runs.sites:evaluate_at", 5)])
def test_sigkill_and_resume_give_the_same_bits(kill: tuple[str, int], whole: Path, cache: Path, tmp_path: Path) -> None:
    stopped = start(tmp_path, cache, kill=kill)
    assert (stopped / "rounds.jsonl").is_file(), "it was killed in the federation itself, not in a baseline"
    assert not (stopped / "sites.json").exists()
    assert checksums(start(tmp_path, cache)) == checksums(whole)


def test_the_folders_are_checked_and_divided_site_by_site(root: Path, tmp_path: Path) -> None:
    checked = CliRunner().invoke(app, ["data", "check", str(root)])
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("0 problem(s)") == 5
    out, picture = tmp_path / "partition.json", tmp_path / "partition.svg"
    divide = ["data", "partition", str(study(tmp_path)), "--data-root", str(root), "--out", str(out), "--show"]
    divided = CliRunner().invoke(app, divide)
    assert divided.exit_code == 0, divided.output
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["num_examples"].keys() == {"site-0", "site-1"}
    assert "site-1" in picture.read_text(encoding="utf-8")


SMALL = [
    "twins.num_patients=40",
    "rounds.num_rounds=1",
    "foundation.num_steps=5",
    "injection.num_experts=3",
    "injection.rank=2",
    "evaluation.num_resamples=20",
]


def test_the_shipped_study_that_injects_runs_small(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "studies" / "fedkim-3sites.toml"
    settings = [part for setting in SMALL for part in ("--set", setting)]
    places = ["--runs", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    done = run(["run", shipped, *places, *settings], tmp_path / "log")
    assert done.status == 0, done.text
    (made,) = (tmp_path / "runs" / "fedkim-3sites").iterdir()
    heads = json.loads((made / "sites.json").read_text(encoding="utf-8"))["scores"]["heads"]
    assert {site: len(tasks) for site, tasks in heads.items()} == {"site-0": 4, "site-1": 4, "site-2": 3}
    assert "ead" not in heads["site-2"]
    page = (made / "report.html").read_text(encoding="utf-8")
    assert 'id="sites"' in page
    assert "Private examples by client and task (sites partition)" in page
