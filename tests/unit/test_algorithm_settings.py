"""An algorithm in a study: its three forms and the messages for mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.core.errors import StudyError
from medfed.study.algorithms import Composition, FedAdam, FedBN, FedProx, Scaffold
from medfed.study.study import Study, load_study

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
COMBINED = 'algorithm={ sharing = "fedbn", local = { name = "fedprox", mu = 0.5 }, server = { name = "fedadam" } }'


def test_a_combination_is_read_named_and_given_back() -> None:
    study = load_study(DEMO, [COMBINED, "algorithm.server.eta=0.1"])
    assert study.algorithm == Composition(sharing=FedBN(), local=FedProx(mu=0.5), server=FedAdam(eta=0.1))
    assert study.algorithm.label == "fedbn+fedprox+fedadam"
    resolved = study.resolved()
    assert resolved["algorithm"]["name"] == "fedbn+fedprox+fedadam"
    assert resolved["algorithm"]["local"] == {"name": "fedprox", "mu": 0.5, "weighting": "examples"}
    assert Study.model_validate(resolved) == study
    assert study.hash() != load_study(DEMO, [COMBINED]).hash()


@pytest.mark.parametrize(
    ("parts", "label"),
    [
        ({}, "fedavg"),
        ({"local": "scaffold"}, "scaffold"),
        ({"local": Scaffold(eta_g=0.5), "sharing": "fedper"}, "fedper+scaffold"),
        ({"server": {"name": "mean", "eta": 0.5}}, "mean"),
    ],
    ids=str,
)
def test_a_label_names_what_is_not_fedavgs(parts: dict[str, object], label: str) -> None:
    assert Composition.model_validate(parts).label == label


def test_a_site_allows_a_combination_by_the_names_of_its_parts() -> None:
    assert load_study(DEMO, [COMBINED]).algorithm.part_names == ("fedbn", "fedprox", "fedadam")
    assert Composition.model_validate({"server": {"name": "mean", "eta": 0.5}}).part_names == ("fedavg",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('algorithm={ local = "fedadam" }', "no part for local.*\n.*server = 'fedadam'"),
        ('algorithm={ sharing = "creamfl" }', "a whole algorithm.*\n.*algorithm = 'creamfl'"),
        ('algorithm={ server = "fedavg" }', "a whole algorithm"),
        ('algorithm={ local = "fedproks" }', "unknown part for local 'fedproks'.*\n.*did you mean fedprox"),
        ('algorithm={ local = { name = "fedprox", mue = 1 } }', "algorithm.local.mue"),
        ('algorithm={ locale = "fedprox" }', "name the algorithm"),
        ('algorithm={ local = "fedprox", sever = "fedadam" }', "sever"),
        ('algorithm={ name = "fedavg", local = "fedprox" }', "give the name or the parts"),
        ('algorithm={ local = { name = "fedprox", weighting = "clients" }, server = "fedadam" }', "server.weighting"),
        ('algorithm={ local = "moon", server = "fednova" }', "no effective steps for moon"),
        ('algorithm={ local = "scaffold", sharing = "fedbn" }', "option II.*optimizer='adam'.*\n.*option"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(StudyError, match=message) as found:
        load_study(DEMO, [override])
    assert "demo.toml" in str(found.value)
