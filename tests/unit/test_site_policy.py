"""A site's policy refuses whole studies, small tasks and tensors that may not leave, and says who may change what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medfed.core.errors import PolicyError, SiteError
from medfed.core.types import Update
from medfed.sites.policy import Policy, parts_sent, policy_for, study_sha256
from medfed.study.study import Study, load_study
from support.site_toys import STUDY, study_file

ALL = ("encoders", "heads", "decoders", "buffers", "state")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(study_file(tmp_path))


def update(**fields: Any) -> Update:
    given = {"delta": {"encoders.ecg.w": torch.ones(1)}, "num_examples": 50, "round": 1, **fields}
    return Update(client="site-0", base="base", num_steps=1, **given)


def test_a_study_that_asks_for_no_more_passes(study: Study) -> None:
    made = policy_for(study, ALL, 5)
    assert (made.tasks, made.algorithms, made.studies) == (("ead",), ("fedavg",), (study_sha256(study),))
    assert made.max_rounds == study.rounds.num_rounds
    made.check_study(study)
    Policy(tasks=("any",), algorithms=("any",), studies=("any",), may_leave=ALL).check_study(study)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("studies", ("0" * 64,), "is not one this site agreed to"),
        ("tasks", ("cd",), "trains ead, none of which is allowed"),
        ("algorithms", ("scaffold",), "algorithm 'fedavg' is not allowed"),
        ("max_rounds", 1, "rounds, allowed are 1"),
        ("may_leave", ("encoders", "buffers"), r"send heads \(tensor 'heads.ead"),
        ("may_leave", ("heads", "buffers"), r"send encoders \(tensor 'encoders.ecg"),
    ],
)
def test_a_study_that_asks_for_more_is_refused_with_the_field(
    study: Study, field: str, value: object, message: str
) -> None:
    policy = policy_for(study, ALL, 5).model_copy(update={field: value})
    with pytest.raises(PolicyError, match=message) as told:
        policy.check_study(study)
    assert told.value.where == f"policy.toml, {field}"
    assert "data officer" in str(told.value.hint)


def test_a_combination_passes_where_all_of_its_parts_are_allowed(tmp_path: Path) -> None:
    text = STUDY.replace('"fedavg"', '{ local = "fedprox", server = "fedadam" }')
    combined = load_study(study_file(tmp_path, text))
    agreed = policy_for(combined, ALL, 5)
    assert agreed.algorithms == ("fedprox", "fedadam")
    agreed.check_study(combined)
    with pytest.raises(PolicyError, match="algorithm 'fedadam' is not allowed"):
        agreed.model_copy(update={"algorithms": ("fedprox",)}).check_study(combined)


@pytest.mark.parametrize("override", ["seed=1", "name=other", "rounds.num_rounds=2", "client.lr=0.5", "algorithm.mu=1"])
def test_agreeing_to_a_study_agrees_to_no_other(tmp_path: Path, override: str) -> None:
    path = study_file(tmp_path, STUDY.replace('"fedavg"', '{name = "fedprox"}'))
    agreed, other = load_study(path), load_study(path, [override])
    assert study_sha256(agreed) == study_sha256(load_study(path))
    with pytest.raises(PolicyError, match="not one this site agreed to"):
        policy_for(agreed, ALL, 5).model_copy(update={"max_rounds": 1000}).check_study(other)


@pytest.mark.parametrize("name", ["fedkim-3sites", "scaffold-3sites"])
def test_a_study_that_came_over_the_network_is_the_one_agreed_to(name: str) -> None:
    agreed = load_study(Path(__file__).parents[2] / "studies" / f"{name}.toml")
    received = Study.model_validate_json(json.dumps(agreed.resolved()))
    assert study_sha256(received) == study_sha256(agreed)


@pytest.mark.parametrize(
    ("algorithm", "sent"),
    [
        ("fedavg", {"encoders", "heads"}),
        ("scaffold", {"encoders", "heads", "state"}),
        ("fedper", {"encoders"}),
        ("creamfl", {"state"}),
        ('{ sharing = "fedper", local = "scaffold" }', {"encoders", "state"}),
    ],
)
def test_what_a_study_sends_follows_from_model_and_algorithm(tmp_path: Path, algorithm: str, sent: set[str]) -> None:
    text = STUDY.replace('"fedavg"', algorithm if "{" in algorithm else f'"{algorithm}"')
    if "scaffold" in algorithm:
        text += '[client]\noptimizer = "sgd"\n'
    found = set(parts_sent(load_study(study_file(tmp_path, text))))
    assert found - {"buffers"} == sent


def test_an_update_is_refused_for_what_it_holds() -> None:
    policy = Policy(tasks=("any",), algorithms=("any",), studies=("any",), max_rounds=3)
    policy.check_update(update())
    one = torch.ones(1)
    for given, message in (
        (update(delta={"encoders.ecg.w": one, "heads.ead.w": one}), "'heads.ead.w' is one of the heads"),
        (update(scales={"heads.ead.w": one}), "'heads.ead.w' is one of the heads"),
        (update(delta={"fusion.w": one}), "'fusion.w' is one of the decoders"),
        (update(buffers={"encoders.ecg.mean": one}), "holds buffers.*encoders.ecg.mean"),
        (update(state={"control": one}), "holds state.*control"),
        (update(round=4), "round 4, allowed are 3"),
        (update(num_examples=9), "of fewer than 10 examples"),
    ):
        with pytest.raises(PolicyError, match=message):
            policy.check_update(given)


def test_few_examples_train_nothing_and_score_nothing() -> None:
    policy = Policy(tasks=("cd", "ead"), algorithms=("any",), studies=("any",), min_examples=10)
    policy.check_counts({"cd": 0, "ead": 10})
    with pytest.raises(PolicyError, match="'cd' has fewer training examples here than 10"):
        policy.check_counts({"cd": 9, "ead": 10})
    with pytest.raises(PolicyError, match="'mp' is not allowed here"):
        policy.check_counts({"mp": 10})
    policy.check_scores({"cd": {"auroc": None, "n": 10}})
    with pytest.raises(PolicyError, match="'cd' are of fewer than 10 examples"):
        policy.check_scores({"cd": {"auroc": 0.5, "n": 9}})
    with pytest.raises(PolicyError, match="scores may not leave"):
        policy.model_copy(update={"scores": False}).check_scores({"cd": {"auroc": 0.5, "n": 100}})


def test_a_policy_file_reads_back_as_it_was_written(study: Study, tmp_path: Path) -> None:
    policy = policy_for(study, ["encoders", "buffers"], 7)
    path = tmp_path / "policy.toml"
    path.write_text(policy.as_toml())
    assert Policy.load(path) == policy


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("min_exampels = 5", "unknown key 'min_exampels'\n.*did you mean 'min_examples'"),
        ('may_leave = ["images"]', "may_leave"),
        ("min_examples = 0", "min_examples: .*greater than or equal to 1"),
        ('tasks = ["eda"]', "unknown task 'eda'.*\n.*did you mean .*ebd"),
        ('algorithms = ["fedavgg"]', "unknown algorithm 'fedavgg'.*\n.*did you mean .*fedavg"),
        ('studies = ["1234"]', "studies: .*64 hex digits"),
        ("class_counts =", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_policy_file_is_named(tmp_path: Path, line: str, message: str) -> None:
    field = line.split(maxsplit=1)[0]
    good = {"tasks": '["any"]', "algorithms": '["any"]', "studies": '["any"]'}
    lines = [f"{name} = {value}" for name, value in good.items() if name != field]
    path = tmp_path / "policy.toml"
    path.write_text("\n".join([*lines, line]) + "\n")
    with pytest.raises(SiteError, match=message) as told:
        Policy.load(path)
    assert told.value.where == path
    assert "--set" not in str(told.value)


def test_an_absent_or_incomplete_policy_allows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with pytest.raises(SiteError, match="no such file"):
        Policy.load(path)
    path.write_text('tasks = ["any"]\n')
    with pytest.raises(SiteError, match="algorithms: Field required"):
        Policy.load(path)
