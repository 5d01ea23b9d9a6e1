"""docs/extending.md is true: its files, its command and its package make a study run, and medfed stays as it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
QUICK = ["--set", "foundation.num_steps=5"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def files() -> dict[str, str]:
    """Return the page's files by name."""
    named = [block.partition("\n") for language in ("python", "toml") for block in blocks(language)]
    marked = [(first, body) for first, _, body in named if first.startswith("# file: ")]
    return {first.removeprefix("# file: "): body for first, body in marked}


def write(names: list[str], folder: Path) -> None:
    for name in names:
        path = folder / Path(name).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[name], encoding="utf-8")


def write_films(folder: Path) -> None:
    """Write 36 films of three hospitals, in the layout of the page's dataset."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), ["file,patient,hospital,effusion"]
    for number in range(36):
        effusion = number // 3 % 2
        pixels = rng.normal(90 + 40 * effusion, 30, (64, 64)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,p{number},hospital {number % 3},{effusion}")
    (folder / "films.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def medfed(*words: str, folder: Path, path: Path | None = None) -> str:
    """Run the command in ``folder``, with the packages in ``path`` installed; return what it printed."""
    places = [str(ROOT / "src"), *([str(path)] if path else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "MEDFED_CACHE": str(folder.parent / "cache")}
    command = [sys.executable, "-m", "medfed", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(folder: Path) -> Path:
    """Install the page's package as an installer does: its files, and its entry points from its pyproject.toml."""
    target = folder / "site-packages"
    modules = [name for name in files() if name.endswith(".py") and "/" not in name]
    write([*modules, "our_films/__init__.py"], target / "our_films")
    project = tomllib.loads(files()["pyproject.toml"])["project"]
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the page's study and films."""
    folder = tmp_path / "work"
    write(["films.toml"], folder)
    write_films(folder / "films")
    return folder


def run_folder(work: Path) -> Path:
    (folder,) = work.glob("runs/films/*")
    return folder


def test_the_pages_files_and_its_command_make_a_run_that_finds_its_plugins_again(work: Path) -> None:
    names = ["my_films.py", "my_task.py", "thumbnail.py", "fedavgm.py"]
    write(names, work)
    (command,) = [block for block in blocks("bash") if "--plugin" in block]
    medfed(*shlex.split(command)[1:], *QUICK, folder=work)
    run = run_folder(work)
    assert (run / "predictions" / "our-effusion.jsonl").read_text(encoding="utf-8").count("\n") > 0
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    assert sorted(plugin["name"] for plugin in provenance["plugins"]) == sorted(names)
    recorded = json.loads((run / "study.json").read_text(encoding="utf-8"))["plugins"]
    assert recorded == sorted(plugin["sha256"] for plugin in provenance["plugins"])
    answer = medfed("predict", "latest", "--image", "films/0.png", "--task", "our-effusion", "--json", folder=work)
    assert json.loads(answer)["answer"] in ("Yes", "No")


def test_the_pages_package_is_used_without_being_named_and_its_algorithm_meets_the_contracts(work: Path) -> None:
    target = install(work.parent)
    medfed("run", "films.toml", "--data-root", "films", *QUICK, folder=work, path=target)
    provenance = json.loads((run_folder(work) / "provenance.json").read_text(encoding="utf-8"))
    assert {plugin["source"].partition(".")[0] for plugin in provenance["plugins"]} == {"our_films"}
    assert len({plugin["sha256"] for plugin in provenance["plugins"]}) == 1, "a package has one content"
    listed = json.loads(medfed("list", "--json", folder=work, path=target))
    assert "our-effusion" in [row["task"] for row in listed["tasks"]]
    assert "fedavgm" in listed["algorithms"]
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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(target)])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = int(next(iter(re.findall(r"(\d+) passed", done.stdout)), "0"))
    assert passed >= 5, done.stdout
