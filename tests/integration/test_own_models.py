"""FedPer, FedBN, Ditto and pFedMe on the small federation: what stays at a client, what travels, what is deployed."""

from __future__ import annotations

import pytest
import torch

from medfed.core.errors import StudyError
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_rounds
from medfed.federated.state import fingerprint, weights_of
from medfed.study.algorithms import AlgorithmSettings, Ditto, FedAvg, FedBN, FedPer, PFedMe
from medfed.study.federation import RoundSettings
from support.federated_toys import (
    SMALL,
    Point,
    run,
    run_and_deploy,
    small_clients,
    small_exchange,
    small_federation,
    small_model,
)

NORM = {"encoders.a.layers.1", "encoders.b.layers.1"}


def sent_names(algorithm: AlgorithmSettings) -> set[str]:
    weights = algorithm.build().shared(weights_of(small_model()))
    return {*weights.params, *weights.buffers}


def test_fedper_keeps_heads_and_fedbn_keeps_batch_norm() -> None:
    weights = weights_of(small_model())
    names = {*weights.params, *weights.buffers}
    assert names - sent_names(FedPer()) == {name for name in names if name.startswith("heads.")}
    assert names - sent_names(FedPer(private_prefixes=("heads.x", "encoders.b"))) == {
        name for name in names if name.startswith(("heads.x.", "encoders.b."))
    }
    assert names - sent_names(FedBN()) == {name for name in names if name.rpartition(".")[0] in NORM}


@pytest.mark.parametrize("algorithm", [FedPer(), FedBN()], ids=["fedper", "fedbn"])
def test_private_tensors_stay_and_shared_ones_are_deployed(algorithm: AlgorithmSettings) -> None:
    start = weights_of(small_model())
    results, models = run_and_deploy(algorithm, 3)
    end, sent = results[-1].state.weights, sent_names(algorithm)
    for before, after in zip(start, end, strict=True):
        for name, value in before.items():
            assert torch.equal(value, after[name]) == (name not in sent), f"the server's {name}"
    for name in end.params:
        mine, theirs = models["h0"].params[name], models["h2"].params[name]
        assert torch.equal(mine, theirs) == (name in sent), name
        assert torch.equal(mine, end.params[name]) == (name in sent), name


def test_private_tensors_go_on_where_they_were() -> None:
    """Of the counter of batches every step of every round is left, over both tasks."""
    _, models = run_and_deploy(FedBN(), 3)
    steps_per_round = 2  # 17 examples of x in batches of 8; the lonely last one joins
    assert int(models["h0"].buffers["encoders.a.layers.1.num_batches_tracked"]) == 3 * steps_per_round * 2


def test_a_prefix_that_fits_nothing_is_refused() -> None:
    initial = initial_state(small_model(), FedPer())
    with pytest.raises(StudyError, match="decoder"):
        FedPer(private_prefixes=("decoder.",)).build().broadcast(initial, "base")


def test_a_model_without_batch_norm_is_refused() -> None:
    with pytest.raises(StudyError, match="batch normalisation"):
        FedBN().build().shared(weights_of(Point(2)))


@pytest.mark.parametrize("lam", [0.0, 0.3, 30.0])
def test_ditto_leaves_the_global_model_to_fedavg(lam: float) -> None:
    mine, plain = (run(algorithm, 3)[-1].state.weights for algorithm in (Ditto(lam=lam), FedAvg()))
    assert fingerprint(*mine) == fingerprint(*plain)


def own_model_of_h0(algorithm: AlgorithmSettings, clients: list[Client]) -> str:
    exchange = InProcessExchange(clients, Trainer(small_model(), algorithm, SMALL, 0))
    state = initial_state(small_model(), algorithm)
    for result in run_rounds(state, exchange, algorithm, small_federation(exchange), RoundSettings(num_rounds=3)):
        state = result.state
    return fingerprint(*algorithm.build().deployed(state.weights, exchange.client_state("h0")))


def test_ditto_without_pull_learns_alone() -> None:
    alone, together = small_clients()[:1], small_clients()
    assert own_model_of_h0(Ditto(lam=0.0), alone) == own_model_of_h0(Ditto(lam=0.0), together)
    assert own_model_of_h0(Ditto(lam=0.3), alone) != own_model_of_h0(Ditto(lam=0.3), together)


def test_a_stronger_pull_deploys_a_model_nearer_the_global_one() -> None:
    def distance(lam: float) -> float:
        results, models = run_and_deploy(Ditto(lam=lam), 4)
        end = results[-1].state.params
        return sum(float((models["h0"].params[name] - end[name]).square().sum()) for name in end)

    assert distance(0.0) > distance(1.0) > distance(4.0)


def test_pfedme_deploys_theta_and_a_newcomer_the_global_model() -> None:
    algorithm = PFedMe()
    results, models = run_and_deploy(algorithm, 2)
    end = results[-1].state.weights
    assert len({fingerprint(*model) for model in (end, *models.values())}) == 5
    newcomer = small_exchange(algorithm).client_state("h0")
    assert algorithm.build().deployed(end, newcomer) == end


def test_pfedme_counts_clients_alike_unless_told_otherwise() -> None:
    ends = [run(PFedMe(weighting=weighting), 1)[-1].state.params for weighting in ("clients", "examples")]
    # Of the encoder of b only h0 (9 examples) and h2 (20) have a say: the mean lies between them either way.
    name = "encoders.b.layers.0.weight"
    locals_ = [
        run(PFedMe(), 1, meddle=lambda answers, who=who: [a for a in answers if a[0] == who])[-1].state.params[name]
        for who in ("h0", "h2")
    ]
    torch.testing.assert_close(ends[0][name], (locals_[0] + locals_[1]) / 2)
    torch.testing.assert_close(ends[1][name], (9 * locals_[0] + 20 * locals_[1]) / 29)
