"""The contrastive losses against loops written from the papers, and what only a triple tells."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from medfed.core.torch_rng import torch_rng
from medfed.tasks.retrieval import pairwise_loss, symile_loss


def vectors(batch: int, modalities: int = 3, dim: int = 5) -> Tensor:
    return torch.randn(batch, modalities, dim, generator=torch_rng("vectors", batch), dtype=torch.float64)


def shuffles(count: int, modalities: int = 3) -> Tensor:
    rng = torch_rng("shuffles", count)
    return torch.stack([torch.randperm(count, generator=rng) for _ in range(modalities)])


def everyone(given: Tensor) -> Tensor:
    return torch.ones(given.shape[:2], dtype=torch.bool)


def product(*parts: Tensor) -> float:
    """The multilinear inner product, coordinate by coordinate."""
    return sum(math.prod(float(part[k]) for part in parts) for k in range(len(parts[0])))


def symile_by_hand(given: Tensor, mixed: Tensor | None) -> float:
    """−log of the positive triple's share, for every anchor modality and example (Saporta et al. 2024, §3.2)."""
    count, modalities, _ = given.shape
    losses = []
    for anchor in range(modalities):
        others = [number for number in range(modalities) if number != anchor]
        for i in range(count):
            positive = product(*given[i])
            if mixed is None:
                tuples = [t for t in itertools.product(range(count), repeat=len(others)) if set(t) != {i}]
            else:
                tuples = [tuple(int(mixed[other, j]) for other in others) for j in range(count) if j != i]
            negatives = [
                product(given[i, anchor], *(given[row, other] for row, other in zip(t, others, strict=True)))
                for t in tuples
            ]
            total = math.exp(positive) + sum(math.exp(value) for value in negatives)
            losses.append(-math.log(math.exp(positive) / total))
    return sum(losses) / len(losses)


def infonce_by_hand(left: Tensor, right: Tensor) -> float:
    """CLIP: the mean of the two directions."""
    losses = []
    for i in range(len(left)):
        row = [math.exp(product(left[i], right[j])) for j in range(len(left))]
        column = [math.exp(product(left[j], right[i])) for j in range(len(left))]
        losses.append(-(math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))) / 2)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_symile_with_shuffled_negatives_is_the_papers(batch: int, modalities: int) -> None:
    given, mixed = vectors(batch, modalities), shuffles(batch, modalities)
    expected = symile_by_hand(given, mixed)
    assert float(symile_loss(given, everyone(given), mixed)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("modalities", [3, 4])
def test_symile_with_all_combinations_is_the_papers(batch: int, modalities: int) -> None:
    given = vectors(batch, modalities)
    expected = symile_by_hand(given, None)
    assert float(symile_loss(given, everyone(given), None)) == pytest.approx(expected, rel=1e-10)


def test_the_positive_triple_is_not_among_its_shuffled_negatives() -> None:
    """With the identity as the shuffle every anchor still has n − 1 negatives: those of the other examples."""
    given, same = vectors(4), torch.arange(4).expand(3, 4)
    expected = symile_by_hand(given, same)
    assert float(symile_loss(given, everyone(given), same)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("batch", [2, 6])
def test_pairwise_is_the_sum_of_infonce_over_pairs(batch: int) -> None:
    given = vectors(batch)
    expected = sum(infonce_by_hand(given[:, a], given[:, b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert float(pairwise_loss(given, everyone(given))) == pytest.approx(expected, rel=1e-10)


def test_absent_modalities_are_left_out() -> None:
    given = vectors(5)
    present = everyone(given)
    present[1, 2] = present[3, 0] = False
    whole = [0, 2, 4]
    complete = given[whole]
    for mixed in (shuffles(3), None):
        assert float(symile_loss(given, present, mixed)) == pytest.approx(symile_by_hand(complete, mixed), rel=1e-10)
    rows = {(0, 1): [0, 1, 2, 4], (0, 2): whole, (1, 2): [0, 2, 3, 4]}
    expected = sum(infonce_by_hand(given[kept, a], given[kept, b]) for (a, b), kept in rows.items())
    assert float(pairwise_loss(given, present)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("complete", [0, 1])
def test_nothing_to_contrast_is_a_loss_and_a_gradient_of_zero(complete: int) -> None:
    given = vectors(3).requires_grad_()
    present = torch.zeros(3, 3, dtype=torch.bool)
    present[:complete] = True
    for loss in (symile_loss(given, present, shuffles(complete)), pairwise_loss(given, present)):
        (gradient,) = torch.autograd.grad(loss, given)
        assert float(loss) == 0
        assert not gradient.any()


def test_only_the_triple_knows_an_exclusive_or() -> None:
    """Four equally likely triples (a, b, a·b) of ±1: perfect triple logits exist, perfect pair logits do not.

    One-dimensional vectors ±s have the triple's product s³ where b and c fit a, and −s³ where they do not. With both
    uniform over the four triples, a pair's products tell nothing: a equals c in half of the examples, b or not. So as s
    grows the Symile loss (all combinations) falls to the logarithm of the number of combinations that fit, and pairwise
    InfoNCE rises from its value at s = 0, which is the best it can do: 3 · log 4.
    """
    signs = torch.tensor([(a, b, a * b) for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)[..., None]

    def losses(size: float) -> tuple[float, float]:
        given = size * signs
        return float(symile_loss(given, everyone(given), None)), float(pairwise_loss(given, everyone(given)))

    guess, sure = losses(0.0), losses(3.0)
    assert guess == pytest.approx((math.log(16), 3 * math.log(4)))
    assert sure[0] == pytest.approx(math.log(8), abs=1e-6)  # 8 of the 16 combinations have the right parity
    assert sure[1] > guess[1]
