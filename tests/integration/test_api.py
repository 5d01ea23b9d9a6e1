"""The public interface: the README's lines, the result object, classes of a notebook, threads, plugins of a run."""

from __future__ import annotations

import linecache
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import medfed
from medfed.core import plugins
from medfed.core.errors import PluginError, RunError
from support.registries import untouched

BLIND = ("blind/other", "blind/none")
"""The LLM without the patient."""
ROOT = Path(__file__).parents[2]
CELL = """
import numpy as np
import polars as pl
from typing import ClassVar

@medfed.register
class Films(medfed.Dataset):
    name = "cell-films"
    card = medfed.Card(title="Our films", version="1", licence="own", access="our archive", citation="none")
    modalities = ("image",)
    targets = ("effusion",)
    marker = "films.csv"

    def index(self, root):
        rows = pl.DataFrame({"number": range(42)})
        effusion = (pl.col("number") // 3 % 2).cast(pl.Int8)
        return rows.select(
            "number",
            example=pl.format("e{}", "number"),
            patient=pl.format("p{}", "number"),
            site=pl.format("h{}", pl.col("number") % 3),
            split=pl.lit(None, pl.String),
            files=pl.lit([self.marker]),
            effusion=effusion,
        )

    def load(self, root, record):
        noise = np.random.default_rng(record["number"]).normal(0.4 + 0.2 * record["effusion"], 0.1, (64, 64))
        return {"image": noise.clip(0, 1)}

    def synthesize(self, root, spec):
        (root / self.marker).write_text("number")


class Half(medfed.Algorithm):
    name: ClassVar[str] = "cell-avg"
    beta: float = 0.5


effusion = medfed.Classification(
    name="cell-effusion", title="Effusion", dataset="cell-films", target="effusion", modalities=("image",),
    question="Is there a pleural effusion?", task_description="Look for fluid.", modality_description="A chest film.",
)
study = medfed.Study(
    name="cells", train=[effusion], algorithm=Half(), partition={"scheme": "natural"}, twins={"num_patients": 42},
    rounds={"num_rounds": 1}, encoders={"image": {"name": "vit-mini", "dim": 16}}, foundation={"num_steps": 5},
)
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with untouched():
        yield


def cell(source: str) -> dict[str, object]:
    """Execute ``source`` as a notebook does: in ``__main__``, its text known to ``linecache`` alone."""
    name = f"<ipython-input-{hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, object] = {"__name__": "__main__", "medfed": medfed}
    exec(compile(source, name, "exec"), names)  # noqa: S102
    return names


def film(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(path)
    return path


def test_the_lines_of_the_readme_run_as_a_script(tmp_path: Path) -> None:
    (lines,) = re.findall(r"## From Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(lines.split("\n\n")[0].splitlines() + lines.split("\n\n")[1].splitlines()) == 12
    (tmp_path / "lines.py").write_text(lines, encoding="utf-8")
    film(tmp_path / "film.png")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "MEDFED_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "lines.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "exported" / "adapter_model.safetensors").is_file()
    assert "('cd', 'lod', 'ead', 'mp')" in done.stdout


def test_parts_of_a_notebooks_cell_run_and_every_result_is_there(tmp_path: Path) -> None:
    study = cell(CELL)["study"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = medfed.run(study, runs=tmp_path / "runs", cache=tmp_path / "cache", quiet=True)  # type: ignore[arg-type]
        assert torch.get_num_threads() == 2, "the process's threads are its own"
    finally:
        torch.set_num_threads(before)
    assert run.provenance.threads == 1
    assert [part.name for part in run.provenance.plugins] == [
        "algorithm cell-avg",
        "dataset cell-films",
        "task cell-effusion",
    ]

    primary = run.scores.filter("primary")
    asked = primary.filter(role="knowledge")
    assert {"before", "after"} <= set(asked["model"]), "of what the LLM kept"
    primary = primary.filter(pl.col("role") != "knowledge")
    assert set(primary["model"]) == {"fedkim", "federated", "heads", "always-no", "always-yes", *BLIND}
    assert primary["value"].dtype == pl.Float64
    assert set(run.differences["baseline"]) == {"federated", "heads", "before", *BLIND}
    assert run.curves.columns == ["round", "model", "task", "metric", "value"]
    assert set(run.curves["model"]) == {"fedkim", "federated"}

    answers = run.predictions("cell-effusion")
    assert set(answers["truth"]) <= {"No", "Yes"}
    assert (answers["P(No)"] + answers["P(Yes)"]).to_numpy() == pytest.approx(1)
    assert ((answers["P(Yes)"] > 0.5) == (answers["response"] == "Yes")).all()
    with pytest.raises(medfed.StudyError, match="no task 'nothing'"):
        run.predictions("nothing")

    assert sorted(run.partition.clients) == ["h0", "h1", "h2"]
    answer = run.ask("Is there a pleural effusion?", image=film(tmp_path / "film.png"))
    assert answer.probabilities is not None
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert "cell-effusion" in run._repr_html_()
    page = run.report()
    assert Path(page).read_text("utf-8").startswith("<!doctype html>")
    assert page._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    (folder,) = run.export(tmp_path / "exported", task="cell-effusion")
    assert (folder / "adapter_model.safetensors").is_file()

    again = medfed.load_run("latest", runs=tmp_path / "runs", cache=tmp_path / "cache")
    assert again.path == run.path
    assert again.study.resolved() == study.resolved()  # type: ignore[attr-defined]
    same = medfed.run(study, runs=tmp_path / "runs", cache=tmp_path / "cache", quiet=True)  # type: ignore[arg-type]
    assert same.path == run.path, "nothing is computed twice"
    with pytest.raises(PluginError, match="worker processes cannot import") as caught:
        medfed.run(study, runs=tmp_path / "runs", cache=tmp_path / "cache", workers=2)  # type: ignore[arg-type]
    assert "plugins=[FILE]" in str(caught.value.hint)

    cell(CELL.replace("Look for fluid.", "Look for more fluid."))
    with pytest.raises(PluginError, match="the task cell-effusion of a notebook or script") as caught:
        medfed.load_run("latest", runs=tmp_path / "runs", cache=tmp_path / "cache").study  # noqa: B018
    assert "run that cell first" in str(caught.value.hint)


def test_workers_are_given_the_parts_of_a_plugins_file_and_a_run_finds_it_again(tmp_path: Path) -> None:
    path = tmp_path / "parts.py"
    path.write_text(
        "import medfed\n" + CELL.partition("\nstudy =")[0] + "\nmedfed.register(Half)\nmedfed.register(effusion)\n"
    )
    settings = {
        "name": "filed",
        "train": ["cell-effusion"],
        "algorithm": {"name": "cell-avg", "beta": 0.25},
        "partition": {"scheme": "natural"},
        "twins": {"num_patients": 42},
        "rounds": {"num_rounds": 1},
        "encoders": {"image": {"name": "vit-mini", "dim": 16}},
        "baselines": [],
        "job": "benchmark",
    }
    places = {"runs": tmp_path / "runs", "cache": tmp_path / "cache"}
    run = medfed.run(settings, plugins=[path], workers=2, quiet=True, **places)  # type: ignore[arg-type]
    assert [(plugin.name, plugin.source) for plugin in run.provenance.plugins] == [("parts.py", str(path))]
    assert run.study.algorithm.beta == 0.25  # type: ignore[attr-defined]
    assert set(run.scores.filter("primary")["model"]) == {"federated", "always-no", "always-yes"}

    with untouched():
        assert medfed.load_run("latest", **places).study.train == ("cell-effusion",)  # type: ignore[arg-type]
    path.write_text(path.read_text() + "# changed\n")
    with untouched(), pytest.raises(PluginError, match=r"the plugin parts.py of this run: the content was") as caught:
        medfed.load_run("latest", **places).study  # type: ignore[arg-type]  # noqa: B018
    assert "--plugin" in str(caught.value.hint)
    inside = run.path / "parts.py"
    inside.write_text(path.read_text().removesuffix("# changed\n"))
    with untouched():
        loaded = medfed.load_run("latest", plugins=[inside], **places)  # type: ignore[arg-type]
        assert loaded.study.train == ("cell-effusion",)
        assert plugins.loaded()[0].source == str(inside)


def test_what_is_no_run_or_no_study_is_told_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        medfed.load_run("latest", runs=tmp_path)
    assert caught.value.hint
    with pytest.raises(medfed.StudyError, match="a sweep of several studies"):
        medfed.load_study("table3")
    with pytest.raises(medfed.StudyError, match="quick form"):
        medfed.run({"name": "s"}, quick=True)
    with pytest.raises(medfed.StudyError, match="unknown key 'trian'"):
        medfed.run(
            {"name": "s", "train": ["lod"], "algorithm": "fedavg", "trian": 1, "encoders": {"image": "vit-mini"}}
        )
