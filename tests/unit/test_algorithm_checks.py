"""What SCAFFOLD and FedNova refuse: client settings their formulas do not hold for, and impossible uploads."""

from __future__ import annotations

import pytest
import torch

from medfed.algorithms.fednova import STEPS
from medfed.core.catalog import ALGORITHMS
from medfed.core.errors import StudyError
from medfed.study.algorithms import AlgorithmSettings, FedNova, Scaffold
from medfed.study.federation import ClientSettings
from support.federated_toys import allowed, changed, run, small_model

PLAIN = ClientSettings(optimizer="sgd", lr=0.1)
Fields = dict[str, object]


def trains_a_round(algorithm: AlgorithmSettings, settings: ClientSettings) -> bool:
    """Whether a round of the small federation trains by these very settings, loses no client and moves the model."""
    (result,) = run(algorithm, 1, settings)
    moved = [not torch.equal(value, small_model().state_dict()[name]) for name, value in result.state.params.items()]
    assert allowed(algorithm, settings) == settings, "a plainer setting was taken in its place"
    return not result.failures and all(moved)


@pytest.mark.parametrize(
    "fields",
    [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"max_grad_norm": 1.0}],
    ids=str,
)
def test_scaffold_by_option_two_is_for_plain_sgd(fields: Fields) -> None:
    settings = ClientSettings.model_validate({**PLAIN.model_dump(), **fields})
    (field, value) = next(iter(fields.items()))
    with pytest.raises(StudyError, match=f'{field}={value!r}.*\n.*option = "I"'):
        Scaffold().check(settings)
    Scaffold(option="I").check(settings)


@pytest.mark.parametrize("fields", [{}, {"precision": "bfloat16"}, {"reset_optimizer": False}], ids=str)
def test_scaffold_by_option_two_takes_plain_sgd(fields: Fields) -> None:
    settings = PLAIN.model_copy(update=fields)
    Scaffold().check(settings)
    assert trains_a_round(Scaffold(), settings)


@pytest.mark.parametrize(
    ("fields", "mu", "reason"),
    [
        ({"optimizer": "adam"}, 0.0, "optimizer='adam'"),
        ({"optimizer": "adamw"}, 0.0, "optimizer='adamw'"),
        ({"momentum": 0.9, "reset_optimizer": False}, 0.0, "kept across rounds"),
        ({"max_grad_norm": 1.0}, 0.5, "clipped"),
        ({"lr": 0.5}, 2.0, "overshoots"),
    ],
)
def test_fednova_refuses_what_has_no_effective_steps(fields: Fields, mu: float, reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        FedNova(mu=mu).check(ClientSettings.model_validate({**PLAIN.model_dump(), **fields}))


@pytest.mark.parametrize(
    ("fields", "mu"),
    [({}, 0.0), ({"momentum": 0.9}, 0.5), ({"weight_decay": 0.1}, 0.5), ({"max_grad_norm": 1.0}, 0.0)],
    ids=str,
)
def test_fednova_takes_sgd(fields: Fields, mu: float) -> None:
    settings = ClientSettings.model_validate({**PLAIN.model_dump(), **fields})
    FedNova(mu=mu).check(settings)
    assert trains_a_round(FedNova(mu=mu), settings)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi", "fedams"])
def test_the_adaptive_family_leaves_the_local_optimizer_free(name: str) -> None:
    settings = ClientSettings(optimizer="adamw", weight_decay=0.1, max_grad_norm=1.0)
    ALGORITHMS[name]().check(settings)
    assert trains_a_round(ALGORITHMS[name](), settings)


@pytest.mark.parametrize("steps", [0.0, -1.0, 1e9, float("nan")])
def test_impossible_effective_steps_do_not_pass_the_gate(steps: float) -> None:
    lie = {STEPS: torch.tensor(steps, dtype=torch.float64)}
    found = run(FedNova(), 1, meddle=lambda answers: changed(answers, "h1", state=lie))[-1]
    without = run(FedNova(), 1, meddle=lambda answers: [a for a in answers if a[0] != "h1"])[-1]
    assert [(failure.client, failure.phase) for failure in found.failures] == [("h1", "gate")]
    assert STEPS in found.failures[0].reason
    for name, value in found.state.params.items():
        assert torch.equal(value, without.state.params[name]), name
