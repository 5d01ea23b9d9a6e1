"""Baselines are named by what decides them and by nothing else; one process trains one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfed.core.catalog import TASKS
from medfed.data.cohort import Cohort
from medfed.runs.baselines import baselines_of, pooled
from medfed.study.study import Study, load_study
from medfed.tasks.base import TaskSet

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
ALL = 'baselines=["federated","local","centralised"]'
CHECKSUMS = {"covid-radiography": "1", "rsna-pneumonia": "2"}


def study(*overrides: str) -> Study:
    return load_study(DEMO, ['train=["cd","lod"]', 'unseen=["ped"]', ALL, *overrides])


def cohort(num_examples: int = 12) -> Cohort:
    """Two clients hold interleaved halves of cd; only the first has lod."""
    whole = {
        name: TaskSet.from_arrays(
            TASKS[name], {"image": np.zeros((num_examples, 1, 64, 64), np.float32)}, np.arange(num_examples) % 2
        )
        for name in ("cd", "lod")
    }

    def part(name: str, start: int) -> TaskSet:
        return TaskSet(whole[name].task, whole[name].data, np.arange(start, num_examples, 2))

    clients = {"client-0": {"cd": part("cd", 0), "lod": part("lod", 0)}, "client-1": {"cd": part("cd", 1)}}
    return Cohort(clients, {}, {}, {}, {}, {}, {})


def names(made: Study, held: Cohort | None = None, checksums: dict[str, str] | None = None) -> list[str]:
    return [f.run.root.name for f in baselines_of(made, held or cohort(), checksums or CHECKSUMS, Path("runs"))]


def test_what_does_not_decide_a_baseline_does_not_change_its_name() -> None:
    same = ["injection.num_experts=0", "injection.lr=0.1", "evaluation.num_resamples=7", "unseen=[]", "name=other"]
    for override in [*same, "federate=false", "description=x"]:
        assert names(study(override)) == names(study()), override
    assert names(study(), checksums={**CHECKSUMS, "chexpert": "3"}) == names(study())


@pytest.mark.parametrize("override", ["rounds.num_rounds=3", "client.lr=0.5", "partition.alpha=2.0", "seed=1"])
def test_what_decides_a_baseline_changes_its_name(override: str) -> None:
    assert not set(names(study(override))) & set(names(study()))


def test_other_data_or_other_holders_are_other_baselines() -> None:
    assert not set(names(study(), checksums={**CHECKSUMS, "rsna-pneumonia": "9"})) & set(names(study()))
    assert not set(names(study(), cohort(14))) & set(names(study()))


def test_local_and_centralised_do_not_depend_on_the_algorithm() -> None:
    average, proximal = names(study()), names(study("algorithm=fedprox"))
    assert [name.split("-")[0] for name in average] == ["federated", "centralised", "local", "local"]
    assert average[0] != proximal[0]
    assert average[1:] == proximal[1:]


def test_each_local_model_has_its_own_name_and_data() -> None:
    made = baselines_of(study(), cohort(), CHECKSUMS, Path("runs"))
    local = {federation.model: federation for federation in made if federation.model.startswith("local/")}
    assert list(local) == ["local/client-0", "local/client-1"]
    assert {name: list(f.cohort.clients) for name, f in local.items()} == {
        "local/client-0": ["client-0"],
        "local/client-1": ["client-1"],
    }
    assert len({federation.run.root for federation in made}) == 4


def test_the_centralised_client_holds_every_private_example_once() -> None:
    (tasks,) = pooled(cohort()).clients.values()
    assert list(tasks["cd"].rows) == list(range(12))
    assert list(tasks["lod"].rows) == list(range(0, 12, 2))
