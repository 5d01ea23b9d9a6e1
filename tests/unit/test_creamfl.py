"""CreamFL: its losses and aggregation against slow oracles written from the paper, and what its parties exchange."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medfed.algorithms import representations as contrast
from medfed.algorithms.creamfl import CreamFL
from medfed.algorithms.representations import (
    Ensemble,
    Exchanged,
    Rows,
    evaluating,
    ids_of,
    matching_loss,
    matching_score,
    represent_public,
    view,
)
from medfed.core.errors import RunError, StudyError
from medfed.core.rng import numpy_rng
from medfed.core.types import Broadcast, Update
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.local import LocalStep, Site
from medfed.federated.rounds import RoundResult, initial_state, run_rounds
from medfed.federated.state import fingerprint, join, split
from medfed.study.federation import RoundSettings
from medfed.tasks.base import TaskSet
from support.federated_toys import (
    SMALL,
    TASK_X,
    TASK_Y,
    Meddler,
    changed,
    small_clients,
    small_exchange,
    small_federation,
    small_model,
    small_public,
    states,
    task_set,
)

FULL = {"x": ("a",), "y": ("a", "b")}


def rows(seed: int, size: int = 7, dim: int = 3, absent: tuple[int, ...] = ()) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    has = torch.ones(size, dtype=torch.bool)
    has[list(absent)] = False
    return Rows(F.normalize(torch.randn(size, dim, generator=rng, dtype=torch.float64), dim=-1) * has.unsqueeze(1), has)


def slow_loss(z: Tensor, k: int, others: list[Rows], tau: float) -> float:
    found = []
    for vectors, has in others:
        if has[k]:
            total = sum(math.exp(float(z @ vectors[j]) / tau) for j in range(len(has)) if has[j])
            found.append(-math.log(math.exp(float(z @ vectors[k]) / tau) / total))
    return sum(found) / len(found) if found else 0.0


def slow_score(z: Tensor, k: int, others: list[Rows]) -> float:
    found = []
    for vectors, has in others:
        rest = [math.exp(float(z @ vectors[j])) for j in range(len(has)) if has[j] and j != k]
        if has[k] and rest:
            found.append(math.log(math.exp(float(z @ vectors[k])) / sum(rest)))
    return sum(found) / len(found) if found else 0.0


OTHERS = [rows(1), rows(2, absent=(1, 4)), rows(3, absent=(4,))]


@pytest.mark.parametrize("others", [OTHERS[:1], OTHERS[1:], OTHERS, [rows(4, absent=(0, 1, 2, 3, 5, 6))]])
def test_matching_loss_and_score_are_the_papers(others: list[Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "ROWS_AT_ONCE", 3)
    own, places = rows(9).vectors.requires_grad_(), torch.tensor([4, 1, 0, 6])
    loss = matching_loss(own[places], places, others, 0.5)
    expected = [slow_loss(own[k].detach(), int(k), others, 0.5) for k in places]
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), own)
    assert bool(torch.isfinite(slope).all())
    scores = matching_score(own.detach(), others)
    assert scores.tolist() == pytest.approx([slow_score(own[k].detach(), k, others) for k in range(7)], rel=1e-12)


def test_the_aggregate_is_the_papers() -> None:
    """Σ_c softmax_c(s) z_c over the clients that sent the row; rows of any length count by their direction."""
    clients = [rows(11, absent=(3,)), rows(12, absent=(2, 3)), rows(13, absent=(3,))]
    ensemble = Ensemble(OTHERS)
    for scale, (vectors, sent) in zip((1.0, 1e30, 1e-3), clients, strict=True):
        ensemble.add(vectors * scale, sent)
    found = ensemble.mean()
    assert found.has.tolist() == [True] * 3 + [False] + [True] * 3
    for k in range(7):
        given = [vectors[k] for vectors, sent in clients if sent[k]]
        odds = [math.exp(slow_score(z, k, OTHERS)) for z in given]
        expected = sum((w / sum(odds) * z for w, z in zip(odds, given, strict=True)), torch.zeros(3).double())
        torch.testing.assert_close(found.vectors[k].double(), expected, rtol=0, atol=1e-6)


def test_a_better_match_weighs_more() -> None:
    partner = rows(1)
    ensemble = Ensemble([partner])
    ensemble.add(partner.vectors, partner.has)
    ensemble.add(-partner.vectors, partner.has)
    assert bool(((ensemble.mean().vectors.double() * partner.vectors).sum(-1) > 0).all())


def world_of(seed: int) -> Exchanged:
    """Random representations of the small public examples; one of y lacks modality b."""
    public = small_public()
    ids = {name: ids_of(part.examples).sort().values for name, part in public.items()}
    parts = {
        name: {
            m: Rows(*(t.float() if t.is_floating_point() else t for t in rows(seed + i, len(ids[name]), 4, (3,) * i)))
            for i, m in enumerate(part.task.modalities)
        }
        for name, part in public.items()
    }
    return Exchanged(ids, parts)


def slow_penalty(step: LocalStep, world: Exchanged, past: Exchanged | None, gamma: float, tau: float) -> float:
    by_task = []
    for name in ("x", "y"):
        part = step.site.public[name]
        rng = numpy_rng(0, "h", 2, step.index, name, "public")
        batch = view(part, rng.choice(len(part), SMALL.batch_size, replace=False))
        with evaluating(step.site.model), torch.no_grad():
            found = step.site.model.representations(part.task, batch)
        order = world.ids[name].tolist()
        by_modality = []
        for modality in part.task.modalities:
            terms = []
            others = [world.rows[name][m] for m in part.task.modalities if m != modality] or [
                world.rows[name][modality]
            ]
            doubled = [Rows(vectors.double(), has) for vectors, has in others]
            for row, example in enumerate(batch.examples):
                k = order.index(int(ids_of((example,))))
                z = found[modality][row].double()
                z = z / math.sqrt(float(z @ z))
                terms.append(slow_loss(z, k, doubled, tau))
                if past is not None:
                    near, far = (
                        math.exp(float(z @ table.rows[name][modality].vectors[k].double()) / tau)
                        for table in (world, past)
                    )
                    terms[-1] -= math.log(near / (near + far))
            by_modality.append(sum(terms) / len(terms))
        by_task.append(sum(by_modality) / len(by_modality))
    return gamma * sum(by_task) / 2


@pytest.mark.parametrize("first", [True, False])
def test_the_clients_contrasts_are_the_papers(first: bool) -> None:
    model = small_model().train()
    sets = {"x": task_set(TASK_X, 6, 1), "y": task_set(TASK_Y, 5, 2)}
    step = LocalStep(Site("h", model, sets, small_public(), SMALL, 0), 1, dict(model.named_parameters()), ())
    world, past = world_of(20), world_of(30)
    before = fingerprint({}, dict(model.named_buffers()))
    broadcast = Broadcast(2, "base", {}, {}, world.tensors())
    kept = {} if first else join({"previous": past.tensors()})
    found = CreamFL(gamma=0.7, temperature=0.4).penalty(step, broadcast, kept)
    assert found is not None
    assert float(found) == pytest.approx(slow_penalty(step, world, None if first else past, 0.7, 0.4), rel=1e-5)
    assert before == fingerprint({}, dict(model.named_buffers())), "public examples leave the statistics alone"
    found.backward()
    for name, param in model.named_parameters():
        assert (param.grad is not None and bool(param.grad.any())) == name.startswith("encoders."), name


def results(
    algorithm: CreamFL, clients: list[Client] | None = None, num_rounds: int = 3
) -> tuple[list[RoundResult], InProcessExchange, dict[str, Update]]:
    """Run a federation; return the rounds, the exchange and the last updates."""
    exchange = InProcessExchange(clients or small_clients(), Trainer(small_model(), algorithm, SMALL, 0))
    updates: dict[str, Update] = {}

    def keep(answers: list) -> list:
        updates.update({name: answer for name, answer in answers if isinstance(answer, Update)})
        return answers

    state = initial_state(small_model(), algorithm)
    rounds = RoundSettings(num_rounds=num_rounds)
    found = list(run_rounds(state, Meddler(exchange, keep), algorithm, small_federation(exchange), rounds))
    return found, exchange, updates


def test_only_representations_travel_and_absence_is_told() -> None:
    algorithm = CreamFL()
    found, exchange, updates = results(algorithm, num_rounds=1)
    broadcast = algorithm.broadcast(found[-1].state, "base")
    assert not broadcast.params
    assert not broadcast.buffers
    held = {"h0": {"x/a", "y/a", "y/b"}, "h1": {"x/a"}, "h2": {"y/a", "y/b"}, "h3": {"x/a", "y/a"}}
    for name, update in updates.items():
        assert not update.delta
        assert not update.buffers
        parts = split(update.state, ("examples", "representations", "sent"))
        assert {key for key, sent in parts["sent"].items() if bool(sent.all())} == held[name]
        for key, vectors in parts["representations"].items():
            lengths = vectors.norm(dim=-1)
            assert torch.allclose(lengths, torch.full_like(lengths, float(key in held[name])), atol=1e-5), key
    own = split(states(exchange)["h0"], ("algorithm", "optimizer"))["algorithm"]
    deployed = algorithm.deployed(found[-1].state.weights, own)
    assert fingerprint(*deployed) != fingerprint(*found[-1].state.weights), "a client predicts with its own model"


def test_representations_are_read_in_the_order_of_their_names() -> None:
    """With three modalities and more, the order in which a contrast sums its partners is in the last bits."""
    model, public = small_model(), small_public()
    sent = represent_public(model, public, {name: one.task.modalities for name, one in public.items()}, SMALL)
    tensors = sent.tensors()
    for given in (tensors, dict(reversed(tensors.items()))):
        read = Exchanged.from_tensors(given)
        assert list(read.rows) == sorted(read.rows)
        assert all(list(parts) == sorted(parts) for parts in read.rows.values())


def test_without_contrast_a_client_learns_alone() -> None:
    alone = [client for client in small_clients() if client.id == "h0"]
    alike = [states(results(CreamFL(gamma=0.0), clients)[1])["h0"] for clients in (alone, None)]
    assert fingerprint(alike[0], {}) == fingerprint(alike[1], {})
    contrasted = states(results(CreamFL())[1])["h0"]
    assert fingerprint(contrasted, {}) != fingerprint(alike[0], {})


def test_without_distillation_the_server_learns_from_public_labels_alone() -> None:
    few = [client for client in small_clients() if client.id == "h1"]
    ends = [results(CreamFL(kd_weight=0.0), clients)[0][-1].state for clients in (few, None)]
    assert fingerprint(*ends[0].weights) == fingerprint(*ends[1].weights)
    taught = results(CreamFL())[0][-1].state
    assert fingerprint(*taught.weights) != fingerprint(*ends[0].weights)


def test_distillation_draws_the_server_to_the_clients() -> None:
    """One client sends its representations: with a strong distillation the server's come nearer to them."""
    only = [client for client in small_clients() if client.id == "h0"]

    def distance(kd_weight: float) -> float:
        algorithm = CreamFL(kd_weight=kd_weight, server_lr=0.01, server_epochs=4)
        found, _, updates = results(algorithm, only, num_rounds=1)
        world, sent = (Exchanged.from_tensors(t) for t in (found[-1].state.server_state, updates["h0"].state))
        return float((world.rows["y"]["b"].vectors - sent.rows["y"]["b"].vectors).square().sum(-1).mean())

    assert distance(5.0) < distance(0.5) < distance(0.0)


def shuffled(part: TaskSet) -> TaskSet:
    return TaskSet(part.task, part.data, np.random.default_rng(0).permutation(part.rows))


def test_public_examples_are_aligned_by_id() -> None:
    """A client whose public table is in another order sends the same rows."""
    model = small_model()
    plain = represent_public(model, small_public(), FULL, SMALL).tensors()
    mixed = {name: shuffled(part) for name, part in small_public().items()}
    other = represent_public(model, mixed, FULL, SMALL).tensors()
    assert plain.keys() == other.keys()
    for name, value in plain.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-6)


def test_a_client_with_other_public_examples_is_told_so() -> None:
    strange = {
        name: TaskSet.from_arrays(part.task, part.data.samples, part.targets.numpy(), "strange")
        for name, part in small_public().items()
    }
    clients = [client if client.id != "h1" else Client("h1", client.tasks, strange) for client in small_clients()]
    found, _, _ = results(CreamFL(), clients, num_rounds=2)
    assert not found[0].failures, "its rows of round 1 count nowhere, as the ids are not the server's"
    (failure,) = found[1].failures
    assert (failure.client, failure.phase) == ("h1", "train")
    assert "public example" in failure.reason
    without = [client for client in small_clients() if client.id != "h1"]
    first = results(CreamFL(), without, num_rounds=1)[0][-1].state
    assert fingerprint(*found[0].state.weights) == fingerprint(*first.weights)


def test_modalities_of_unequal_width_stand_for_themselves() -> None:
    parts = {"a": rows(1, dim=3), "b": rows(2, dim=4), "c": rows(3, dim=3)}
    table = Exchanged({"t": torch.arange(7)}, {"t": parts})
    assert [other.vectors is parts["c"].vectors for other in table.partners("t", "a")] == [True]
    assert [other.vectors is parts["b"].vectors for other in table.partners("t", "b")] == [True]


def test_a_server_without_public_examples_is_refused() -> None:
    exchange = small_exchange(CreamFL())
    state = initial_state(small_model(), CreamFL())
    with pytest.raises(StudyError, match="public"):
        CreamFL().upload_like(state, Federation(exchange.registered, 0, small_model()))
    with pytest.raises(StudyError, match="representations"):
        CreamFL().upload_like(state, replace(small_federation(exchange), model=torch.nn.Linear(1, 1)))


def test_a_diverging_server_stops_the_run() -> None:
    exchange = small_exchange(CreamFL(server_lr=1e38, server_epochs=3))
    algorithm = CreamFL(server_lr=1e38, server_epochs=3)
    state = initial_state(small_model(), algorithm)
    with pytest.raises(RunError, match="server_lr"):
        list(run_rounds(state, exchange, algorithm, small_federation(exchange), RoundSettings(num_rounds=2)))


def test_the_gate_wants_every_row() -> None:
    algorithm = CreamFL()
    exchange = small_exchange(algorithm)
    meddled = Meddler(exchange, lambda answers: changed(answers, "h1", state={}))
    state = initial_state(small_model(), algorithm)
    rounds = RoundSettings(num_rounds=1)
    (result,) = run_rounds(state, meddled, algorithm, small_federation(exchange), rounds)
    assert [(failure.client, failure.phase) for failure in result.failures] == [("h1", "gate")]
