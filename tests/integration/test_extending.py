"""docs/extending.md is true: its files and registry lines, put into a copy of the package, make a study run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import medfed

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def add_files(package: Path) -> list[Path]:
    added = []
    for block in blocks("python"):
        first, _, body = block.partition("\n")
        path = package / first.removeprefix("# file: src/medfed/")
        assert not path.exists(), f"{path} exists: the page shows nothing new"
        path.write_text(body, encoding="utf-8")
        added.append(path)
    return added


def apply_lines(package: Path) -> list[int]:
    """Apply every diff block and return how many lines each adds."""
    counts = []
    for block in blocks("diff"):
        first, *lines = block.rstrip("\n").split("\n")
        path = package / first.removeprefix("# registry: src/medfed/")
        anchor, *added = [line[1:] for line in lines]
        text = path.read_text(encoding="utf-8")
        assert anchor in text.split("\n"), f"{path}: the line {anchor!r} the page adds after is not there"
        path.write_text(text.replace(anchor + "\n", "\n".join([anchor, *added]) + "\n"), encoding="utf-8")
        counts.append(len(added))
    return counts


def test_the_pages_task_encoder_and_algorithm_are_one_file_and_one_line_each_and_run(tmp_path: Path) -> None:
    package = tmp_path / "copy" / "medfed"
    shutil.copytree(Path(medfed.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert len(add_files(package)) == 3
    assert apply_lines(package) == [1, 1, 1]
    study = tmp_path / "extended.toml"
    study.write_text(blocks("toml")[0], encoding="utf-8")
    command = [sys.executable, "-m", "medfed", "run", str(study), "--runs", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "MEDFED_CACHE": str(tmp_path / "cache")}
    quick = ["--set", "foundation.kind=tiny", "--set", "foundation.num_steps=5"]
    done = subprocess.run([*command, *quick], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    predictions = list((tmp_path / "runs").rglob("predictions/cardiomegaly.jsonl"))
    assert len(predictions) == 1
    assert predictions[0].read_text(encoding="utf-8").count("\n") > 0


def test_the_contracts_pick_the_pages_algorithm_up(tmp_path: Path) -> None:
    package = tmp_path / "copy" / "medfed"
    shutil.copytree(Path(medfed.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    add_files(package)
    apply_lines(package)
    chosen = "fedavgm and (arrival or participation or hyperparameter or lacks or seed)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/contract/test_algorithms.py",
        "-k",
        chosen,
    ]
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = int(next(iter(re.findall(r"(\d+) passed", done.stdout)), "0"))
    assert passed >= 5, done.stdout
