"""Local training: batches, steps, optimizer state, and what a client leaves untouched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from medfed.core.errors import DataError, RunError, StudyError
from medfed.core.types import Broadcast, Update
from medfed.federated.client import Client, initial_client_state
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.gate import delta_dtype
from medfed.federated.local import in_order, num_batches, steps
from medfed.federated.state import FederatedState, Weights, fingerprint, load_weights, num_bytes, weights_of
from medfed.study.algorithms import FedAvg, FedProx
from medfed.study.federation import ClientSettings
from support.federated_toys import SMALL, TASK_X, TASK_Y, Point, quadratic_client, small_clients, small_model, task_set


def broadcast(model: nn.Module, round: int = 1) -> Broadcast:
    params, buffers = weights_of(model)
    return Broadcast(round, fingerprint(params, buffers), params, buffers)


def train(client: Client, settings: ClientSettings = SMALL, model: nn.Module | None = None, seed: int = 0) -> Update:
    return client.train(model or small_model(), broadcast(small_model()), FedAvg().build(), {}, settings, seed)[0]


@pytest.mark.parametrize(
    ("num_examples", "size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (5, 4, [5]), (3, 1, [1, 1, 1]), (4, 9, [4])],
)
def test_a_last_batch_of_one_joins_the_one_before(num_examples: int, size: int, sizes: list[int]) -> None:
    examples = {"x": task_set(TASK_X, num_examples, 0)}
    drawn = [len(items[0].batch) for items in steps(examples, ClientSettings(batch_size=size), 0, "h", 1)]
    assert drawn == sizes
    assert num_batches(num_examples, size) == len(sizes)


def test_an_epoch_passes_the_largest_task_once_and_repeats_the_others() -> None:
    sets = {"x": task_set(TASK_X, 12, 0), "y": task_set(TASK_Y, 5, 1)}
    drawn = list(steps(sets, ClientSettings(batch_size=4, local_epochs=2), 0, "h", 1))
    assert len(drawn) == 6
    assert [[item.weight for item in items] for items in drawn] == [[0.5, 0.5]] * 6
    for epoch in (drawn[:3], drawn[3:]):
        seen = [example for items in epoch for example in items[0].batch.examples]
        assert sorted(seen) == sorted(f"e{number}" for number in range(12))
        # y has one batch of five a pass, so three fresh permutations an epoch.
        assert all(sorted(items[1].batch.examples) == [f"e{number}" for number in range(5)] for items in epoch)
        assert len({items[1].batch.examples for items in epoch}) == 3
    assert drawn[0][0].batch.examples != drawn[3][0].batch.examples, "epochs repeat their order"


def test_local_steps_override_epochs_and_continue_them() -> None:
    sets = {"x": task_set(TASK_X, 12, 0)}
    many = list(steps(sets, ClientSettings(batch_size=4, local_epochs=3), 0, "h", 1))
    few = list(steps(sets, ClientSettings(batch_size=4, local_steps=5), 0, "h", 1))
    assert [items[0].batch.examples for items in few] == [items[0].batch.examples for items in many[:5]]


def test_the_weights_of_a_whole_pass_are_the_mean_over_tasks_of_the_mean_over_examples() -> None:
    sets = {"x": task_set(TASK_X, 10, 0), "y": task_set(TASK_Y, 5, 1)}
    shares = [(item.task.name, len(item.batch), item.weight) for item in in_order(sets, 4)]
    # y has 5: the fifth alone would leave BatchNorm no spread, so it joins the four before it
    assert shares == [("x", 4, 0.2), ("x", 4, 0.2), ("x", 2, 0.1), ("y", 5, 0.5)]


def test_counts_in_the_update() -> None:
    updates = {client.id: train(client) for client in small_clients()}
    assert updates["h0"].examples == {"encoders.a": 26, "encoders.b": 9, "heads.x": 17, "heads.y": 9}
    assert updates["h1"].examples == {"encoders.a": 12, "encoders.b": 0, "heads.x": 12, "heads.y": 0}
    assert updates["h3"].examples == {"encoders.a": 19, "encoders.b": 0, "heads.x": 8, "heads.y": 11}
    # h0: 17 examples of x in batches of 8 are 8 + 9; h2: 20 of y are 8 + 8 + 4.
    assert [updates[name].num_steps for name in ("h0", "h2")] == [2, 3]
    assert updates["h0"].num_examples == 26
    assert updates["h1"].metrics.keys() == {"loss.x", "seconds"}
    assert all(value.dtype == torch.float32 for value in updates["h0"].delta.values())


def test_what_no_example_reaches_does_not_move() -> None:
    """Weight decay and FedProx would both move it if it were in the optimizer."""
    settings = ClientSettings(optimizer="adamw", lr=0.1, weight_decay=0.5, batch_size=4)
    sent = broadcast(small_model())
    update, _ = small_clients()[1].train(small_model(), sent, FedProx(mu=1.0).build(), {}, settings, 0)
    for name, value in update.delta.items():
        reached = name.startswith(("encoders.a", "heads.x"))
        assert bool(value.any()) == reached, name
    assert torch.equal(
        update.buffers["encoders.b.layers.1.running_mean"], sent.buffers["encoders.b.layers.1.running_mean"]
    )


def test_clients_share_a_model_without_a_trace() -> None:
    shared, clients = small_model(), small_clients()
    apart = [train(client) for client in clients]
    together = [train(client, model=shared) for client in (*clients, *clients)]
    for one, other, again in zip(apart, together[:4], together[4:], strict=True):
        assert fingerprint(one.delta, one.buffers) == fingerprint(other.delta, other.buffers)
        assert fingerprint(one.delta, one.buffers) == fingerprint(again.delta, again.buffers)
    assert all(param.grad is None for param in shared.parameters())


def test_seed_client_and_round_draw_anew() -> None:
    base = small_clients()[0]
    twin = Client("other", base.tasks)
    draws = [(base, 1, 0), (base, 1, 0), (base, 2, 0), (base, 1, 1), (twin, 1, 0)]
    prints = []
    for client, round, seed in draws:
        update, _ = client.train(small_model(), broadcast(small_model(), round), FedAvg().build(), {}, SMALL, seed)
        prints.append(fingerprint(update.delta, update.buffers))
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4


def test_training_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    expected = (torch.rand(1).item(), np.random.rand())
    torch.manual_seed(7)
    np.random.seed(7)
    train(small_clients()[0])
    assert (torch.rand(1).item(), np.random.rand()) == expected


def test_frozen_parameters_do_not_travel() -> None:
    model = small_model()
    model.encoders["a"].requires_grad_(False)
    params, buffers = weights_of(model)
    assert not any(name.startswith("encoders.a") for name in params)
    assert "encoders.a.layers.1.running_mean" in buffers
    before = model.encoders["a"].layers[0].weight.clone()
    sent = Broadcast(1, fingerprint(params, buffers), params, buffers)
    update, _ = small_clients()[0].train(model, sent, FedAvg().build(), {}, SMALL, 0)
    assert update.delta.keys() == params.keys()
    assert torch.equal(before, model.encoders["a"].layers[0].weight)


def test_kept_optimizer_slots_continue_the_run() -> None:
    """Full batches: two rounds of 5 steps with kept slots are one round of 10; with fresh slots they are not."""
    client = quadratic_client("h", [1.0, 3.0], [2.0, -1.0])

    def ends(num_rounds: int, num_steps: int, reset: bool) -> torch.Tensor:
        settings = ClientSettings(lr=0.1, local_steps=num_steps, reset_optimizer=reset)
        model, state = Point(2), initial_client_state(FedAvg().build(), Weights({}, {}))
        point = model.w.detach().clone()
        for round in range(1, num_rounds + 1):
            update, state = client.train(
                model, Broadcast(round, "", {"w": point}), FedAvg().build(), state, settings, 0
            )
            point = point + update.delta["w"]
        return point

    torch.testing.assert_close(ends(2, 5, reset=False), ends(1, 10, reset=True), rtol=0, atol=1e-14)
    assert (ends(2, 5, reset=True) - ends(1, 10, reset=True)).abs().max() > 0.01


def test_gradients_are_clipped() -> None:
    """The gradient at 0 is a·(0 − b) = (−30, −40), of norm 50; clipped to 1 a step of 0.5 goes to (0.3, 0.4)."""
    client = quadratic_client("h", [10.0, 10.0], [3.0, 4.0])
    settings = ClientSettings(optimizer="sgd", lr=0.5, local_steps=1, max_grad_norm=1.0)
    sent = Broadcast(1, "", {"w": torch.zeros(2, dtype=torch.float64)})
    update, _ = client.train(Point(2), sent, FedAvg().build(), {}, settings, 0)
    torch.testing.assert_close(update.delta["w"], torch.tensor([0.3, 0.4], dtype=torch.float64), rtol=1e-5, atol=0)


def test_settings_and_clients_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"momentum=0.9 is for optimizer='sgd'"):
        ClientSettings(optimizer="adam", momentum=0.9)
    with pytest.raises(DataError, match=r"client .h9.: it has no training example"):
        Client("h9", {"x": task_set(TASK_X, 0, 0)})
    with pytest.raises(StudyError, match=r"client .h0.: two clients have this id"):
        InProcessExchange([small_clients()[0]] * 2, Trainer(small_model(), FedAvg().build(), SMALL, 0))


def test_deltas_of_half_precision_models_travel_in_float32() -> None:
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    assert [delta_dtype(kind) for kind in kinds] == [torch.float32, torch.float32, torch.float32, torch.float64]


def test_fingerprint_sees_names_dtypes_shapes_and_bytes_but_not_order() -> None:
    base = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    print_ = fingerprint(base, {})
    assert fingerprint(dict(reversed(base.items())), {}) == print_
    assert fingerprint({"a": torch.arange(12.0)[::2] / 2, "b": torch.zeros(2)}, {}) == print_, "strides are not content"
    others = (
        ({"a": base["a"].view(2, 3), "b": base["b"]}, {}),
        ({"a": base["a"].double(), "b": base["b"]}, {}),
        ({"a2": base["a"], "b": base["b"]}, {}),
        ({"a": base["a"]}, {"b": base["b"]}),
        ({"a": base["a"] + torch.tensor([0, 0, 0, 0, 0, 1e-6]), "b": base["b"]}, {}),
        ({"a": base["a"], "b": -base["b"]}, {}),
        ({"a": base["a"], "b": base["b"].int()}, {}),
    )
    assert len({print_, *(fingerprint(*other) for other in others)}) == 8


def test_weights_fit_only_their_model() -> None:
    model = small_model()
    params, buffers = weights_of(model)
    with pytest.raises(RunError, match=r"tensor 'heads.x.1.bias': parameter is missing"):
        load_weights(model, Weights({k: v for k, v in params.items() if k != "heads.x.1.bias"}, buffers))
    with pytest.raises(RunError, match=r"tensor 'extra': buffer is not in the model"):
        load_weights(model, Weights(params, {**buffers, "extra": torch.zeros(1)}))
    with pytest.raises(RunError, match=r"tensor 'heads.x.1.bias': parameter has shape \(1,\), the model's is \(2,\)"):
        load_weights(model, Weights({**params, "heads.x.1.bias": torch.zeros(1)}, buffers))


def test_state_survives_flattening() -> None:
    params, buffers = weights_of(small_model())
    state = FederatedState(4, params, buffers, {"c/w": torch.ones(3)})
    back = FederatedState.from_tensors(state.tensors())
    assert back.round == 4
    for kind in ("params", "buffers", "server_state"):
        assert fingerprint(getattr(back, kind), {}) == fingerprint(getattr(state, kind), {})
    with pytest.raises(RunError, match="tensor 'optimizer/w': not one of the groups"):
        FederatedState.from_tensors({"round": torch.tensor(1), "optimizer/w": torch.ones(1)})


def test_num_bytes() -> None:
    assert num_bytes({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}, {"c": torch.tensor(1.0)}) == 32
