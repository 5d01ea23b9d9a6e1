"""A run is served by the LLM that it was made with: found by its record, and another one is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import medfed
from medfed.cli.app import app
from medfed.core.errors import MedfedError, StudyError
from medfed.export.export import Form, export_run
from medfed.llm.obtain.cached import Origin, folder_of, write_fingerprint
from medfed.llm.obtain.recorded import Places, load_recorded
from medfed.records.folder import RunFolder
from medfed.records.schema import ProvenanceFile
from medfed.runs.loaded import LoadedRun
from medfed.study.foundation import TinySettings
from support.finished_runs import finished_run
from support.llm_toys import write_model

NAME = "smollm2-135m"
KINDS = ["qwen2", "llama", "gemma"]


def noised(llm: Path, place: Path) -> Path:
    """A copy of an LLM whose matrices are a little off."""
    shutil.copytree(llm, place)
    weights = load_file(place / "model.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        off = {name: value + 0.05 * torch.randn_like(value) for name, value in weights.items()}
    save_file(off, place / "model.safetensors", {"format": "pt"})
    return place


def record(run: Path, **facts: object) -> None:
    """Change what a run recorded of its LLM; None forgets a fact."""
    files = RunFolder(run)
    before = files.read(ProvenanceFile)
    kept = {name: value for name, value in {**before.foundation, **facts}.items() if value is not None}
    files.write(before.model_copy(update={"foundation": kept}))


@pytest.fixture(params=KINDS)
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_model(tmp_path / "llm", request.param)


@pytest.fixture
def run(llm: Path, tmp_path: Path) -> Path:
    return finished_run(tmp_path / "runs", llm)


def test_the_llm_is_found_where_the_run_had_it(run: Path, llm: Path, tmp_path: Path) -> None:
    loaded = LoadedRun(run, tmp_path, None)
    assert loaded.note is None
    assert loaded.injector.injected.foundation.source == str(llm)


def test_another_llm_is_refused_by_everything_that_answers(run: Path, llm: Path, tmp_path: Path) -> None:
    other = noised(llm, tmp_path / "other")
    message = "this is another LLM than the run's"
    place = ["--cache", str(tmp_path), "--foundation", str(other)]
    picture = ["--image", "x.png", "--question", "Is there a pleural effusion?"]
    for words in (["predict", *picture], ["evaluate"], ["play"], ["export", "--out", str(tmp_path / "out")]):
        found = CliRunner().invoke(app, [words[0], str(run), *words[1:], *place])
        assert isinstance(found.exception, MedfedError), words
        assert message in str(found.exception), words
        assert "next step: pass --foundation FOLDER of that LLM" in str(found.exception), words
    with pytest.raises(StudyError, match=message):
        export_run(run, tmp_path / "out", tmp_path, other, Form(("cd",)))
    with pytest.raises(StudyError, match=message):
        medfed.load_run(run, cache=tmp_path, foundation=other)
    assert medfed.load_run(run, cache=tmp_path, foundation=llm).path == run
    assert not (tmp_path / "out").exists()


def test_a_known_llm_is_found_by_its_name_in_the_cache(run: Path, llm: Path, tmp_path: Path) -> None:
    record(run, name=NAME)
    cached = folder_of(NAME, tmp_path / "cache")
    shutil.move(llm, cached)
    with pytest.raises(StudyError, match=rf"{NAME} is not here; it was in .*llm\n.*medfed foundation get {NAME}"):
        LoadedRun(run, tmp_path / "elsewhere", None)
    write_fingerprint(cached, Origin(title="x", licence=None, source="x", dtype="float32", num_parameters=1, tied=True))
    assert LoadedRun(run, tmp_path / "cache", None).injector.injected.foundation.source == str(cached)


def test_an_llm_without_a_name_that_is_gone_is_said_with_its_place(run: Path, llm: Path, tmp_path: Path) -> None:
    shutil.move(llm, tmp_path / "moved")
    with pytest.raises(StudyError, match=r"is not here; it was in .*llm\n.*pass --foundation FOLDER of that LLM"):
        LoadedRun(run, tmp_path, None)
    assert LoadedRun(run, tmp_path, tmp_path / "moved").note is None, "the same content elsewhere is the same LLM"


def test_an_old_run_is_served_with_a_note(run: Path, llm: Path, tmp_path: Path) -> None:
    record(run, sha256=None, folder=None)
    with pytest.raises(StudyError, match="another LLM than the run's: the weights"):
        LoadedRun(run, tmp_path, noised(llm, tmp_path / "other"))
    assert LoadedRun(run, tmp_path, llm).note is None, "its weights were recorded"
    record(run, fingerprint_before=None)
    note = LoadedRun(run, tmp_path, llm).note
    assert note is not None
    (exported,) = export_run(run, tmp_path / "out", tmp_path, llm, Form(("cd",)))
    assert note in exported.notes


def test_another_tiny_llm_is_refused(tmp_path: Path) -> None:
    small = TinySettings(vocab_size=400, width=16, num_layers=1, num_heads=2, num_steps=2, batch_size=8)
    before = load_recorded(small, {}, Places(None, tmp_path)).foundation.fingerprint()
    assert load_recorded(small, {"fingerprint_before": before}, Places(None, tmp_path)).note is None
    with pytest.raises(StudyError, match=r"another LLM than the run's.*\n.*--cache"):
        load_recorded(small, {"fingerprint_before": "0" * 64}, Places(None, tmp_path))
