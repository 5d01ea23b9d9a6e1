"""Length buckets change nothing but time: the same likelihoods, loss and gradients as one padded forward."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.injection.batching import fixed_cost, length_buckets
from medfed.injection.encode import Group, encode
from medfed.injection.inject import GraphCut, Injector
from medfed.injection.model import InjectedModel
from medfed.llm.forward import answer_logits
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, foundation, injector, public, settings

TASKS = (IMAGE, WORDY, BOTH)


def cost(division: list[list[int]], lengths: list[int], sizes: list[int], fixed: float) -> float:
    padded = (sum(sizes[n] for n in part) * max(lengths[n] for n in part) for part in division)
    return sum(padded) + fixed * len(division)


@pytest.mark.parametrize("fixed", [0.0, 7.0, 40.0, 1e6])
def test_no_division_costs_less_than_the_one_chosen(fixed: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths, sizes = rng.integers(5, 60, 4).tolist(), rng.integers(1, 6, 4).tolist()
        chosen = length_buckets(lengths, sizes, fixed)
        assert sorted(number for part in chosen for number in part) == list(range(4))
        every = product(range(4), repeat=4)  # all ways to give four groups a bucket each
        divisions = ([[n for n in range(4) if given[n] == bucket] for bucket in set(given)] for given in every)
        least = min(cost(division, lengths, sizes, fixed) for division in divisions)
        assert cost(chosen, lengths, sizes, fixed) == pytest.approx(least)


def test_a_tiny_llm_is_not_run_twice_to_save_few_positions_and_a_larger_one_is() -> None:
    small, large = (
        fixed_cost(foundation(hidden_size=width, intermediate_size=2 * width).model, 2) for width in (32, 512)
    )
    lengths, sizes = [20, 45], [4, 4]
    print(f"a forward costs {small:.0f} positions at width 32, {large:.1f} at width 512; one split saves 100")
    assert len(length_buckets(lengths, sizes, small)) == 1
    assert len(length_buckets(lengths, sizes, large)) == 2


def groups_of(model: nn.Module, sizes: tuple[int, ...] = (3, 2, 4)) -> list[Group]:
    parts = [(task, examples(task, size).batches(size)[0]) for task, size in zip(TASKS, sizes, strict=True)]
    return encode(model, parts)


def gradients(server: Injector, fixed: float) -> tuple[dict[str, Tensor], float, int]:
    """Gradients and loss of the first step of an untrained server whose forwards cost ``fixed`` positions."""
    server.injected._fixed_cost = fixed
    forwards = []
    server.injected.llm.register_forward_hook(lambda *_: forwards.append(1))
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        found.update({name: value.grad.clone() for name, value in server._params.items() if value.grad is not None})

    server._optimizer.register_step_pre_hook(keep)
    record = next(server.inject(public(), 1))
    return found, record.loss, len(forwards)


@pytest.mark.parametrize("routing_weight", [0.0, 0.5])
def test_a_step_in_buckets_is_the_padded_step(routing_weight: float) -> None:
    changes = {"dropout": 0.0, "public_lr": 0, "max_grad_norm": None, "routing_weight": routing_weight, "lr": 1e-3}
    servers = [injector(**changes) for _ in range(2)]
    for server in servers:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)  # B starts at zero, and α and A would get no gradient
            for name, value in server.injected.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(value, std=0.1)
    (whole, loss, once), (parts, same_loss, often) = gradients(servers[0], 1e9), gradients(servers[1], 0.0)
    assert (once, often) == (1, 2)
    assert loss == pytest.approx(same_loss, rel=1e-5)
    assert whole.keys() == parts.keys()
    assert any(name.startswith("encoders.") for name in whole), "the encoders learn through all buckets"
    assert any(".router." in name for name in whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def test_every_row_is_asked_at_its_own_positions_alone() -> None:
    model = federated_model().eval()
    injected = InjectedModel(foundation(), {"image": 5, "sound": 7}, settings()).eval()
    groups, kept = groups_of(model), []
    head = injected.llm.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, inputs, out: kept.append(out.shape[0] * out.shape[1]))
    alpha = injected.alpha(TASKS)
    with torch.no_grad(), injected.mixing(alpha.repeat_interleave(torch.tensor([3, 2, 4]), 0)):
        together = injected(groups)
    handle.remove()
    wordy = 1 + len(injected.prompt(WORDY).appended)
    print(f"7 rows ask one position each, 2 rows {wordy}")
    assert wordy > 1
    assert kept == [7 + 2 * wordy]
    for number, group in enumerate(groups):
        with torch.no_grad(), injected.mixing(alpha[number : number + 1]):
            torch.testing.assert_close(injected([group])[0], together[number], atol=1e-4, rtol=1e-5)


def test_the_llms_own_way_with_logits_is_kept_where_few_are_asked() -> None:
    class Scaled(nn.Module):
        """A causal LM that does something to its logits, as some do."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

        def get_input_embeddings(self) -> nn.Module:
            return self.table

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, hidden: Tensor) -> Tensor:
            logits: Tensor = 3 * torch.tanh(self.head(hidden))
            return logits

    llm, hidden = Scaled(), torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = llm(hidden)
    one, three = answer_logits(llm, [2, 3], [1, 3], lambda: llm(hidden))
    torch.testing.assert_close(one, whole[:2, -1:])
    torch.testing.assert_close(three, whole[2:])
    torch.testing.assert_close(llm(hidden), whole, msg="the head must be as it was")


def test_a_seam_hands_on_what_pieces_gathered() -> None:
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    middle, cut = x.square(), GraphCut()
    leaf = cut.leaf(middle)
    for piece in (leaf[:2], leaf[2:]):
        (5 * piece).sum().backward()
    cut.backward(middle[0])
    print("d/dx of 5·Σx² + x₀² is 10·x, and 2·x₀ more for the first")
    torch.testing.assert_close(x.grad, torch.tensor([12.0, 20.0, 30.0]))
    constant = torch.ones(2)
    assert cut.leaf(constant) is constant
