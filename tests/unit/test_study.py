"""Studies: every shipped file parses; a wrong key, name or value is named with the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.core.errors import StudyError
from medfed.study.study import Study, load_study
from medfed.study.sweep import is_sweep

STUDIES = [path for path in sorted((Path(__file__).parents[2] / "studies").glob("*.toml")) if not is_sweep(path)]
DEMO = next(path for path in STUDIES if path.stem == "demo")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_parses_and_its_resolved_form_gives_it_back(path: Path) -> None:
    study = load_study(path)
    assert Study.model_validate(study.resolved()) == study


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clinet.lr=1", "did you mean 'client'"),
        ("client.learning_rate=1", "unknown key 'client.learning_rate'"),
        ("algorithm=fedavgg", "did you mean fedavg"),
        ("encoders.image=vit-minii", "vit-mini"),
        ('train=["cdd"]', "did you mean cd"),
        ("client.lr=-1", "client.lr"),
        ("client.lr=fast", "client.lr"),
        ("algorithm.mue=1", "mue"),
        ('unseen=["cd"]', "both trained and unseen"),
        ("encoders={}", "add encoders"),
        ("seed", "key=value"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        load_study(DEMO, [override])


def test_an_open_question_cannot_be_trained() -> None:
    with pytest.raises(StudyError, match="an open question; list it under unseen"):
        load_study(DEMO, ['train=["mr"]', "unseen=[]"])


def test_overrides_take_toml_values_and_keep_shorthand_names() -> None:
    study = load_study(DEMO, ["rounds.num_rounds=3", "algorithm=fedprox", "algorithm.mu=0.5"])
    assert study.rounds.num_rounds == 3
    assert study.algorithm.name == "fedprox"
    assert study.resolved()["algorithm"] == {"name": "fedprox", "mu": 0.5, "weighting": "examples"}


def test_the_hash_tells_settings_and_data_apart_but_not_seed_or_words() -> None:
    one = load_study(DEMO)
    assert one.hash("data:1") == load_study(DEMO, ["seed=5", "description=other"]).hash("data:1")
    assert one.hash("data:1") != one.hash("data:2")
    assert one.hash() != load_study(DEMO, ["client.lr=0.5"]).hash()


def test_a_missing_file_and_broken_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such study"):
        load_study(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    with pytest.raises(StudyError, match="not valid TOML"):
        load_study(broken)


@pytest.mark.parametrize("name", ["smollm2", "qwen", "qwen-real", "medical-7b"])
def test_the_studies_of_real_llms_inject_once_and_work_against_forgetting(name: str) -> None:
    study = load_study(DEMO.parent / f"{name}.toml")
    assert study.foundation.kind == "huggingface"
    assert (study.injection.schedule, study.evaluation.watch_every) == ("last", 0)
    rehearsal = study.injection.rehearsal
    assert min(rehearsal.weight, rehearsal.question_weight, study.injection.kl_weight) > 0
    assert study.evaluation.retention.sets == ("found",)
    assert set(study.evaluation.controls) == {"reuse", "count", "blind", "answers"}
    assert (study.twins is None) == (name == "qwen-real")
