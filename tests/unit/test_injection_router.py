"""The router: Eq. 4 by hand, padding without effect, the ablations, and why embeddings are normalised."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medfed.injection.router import Description, Router, entropy, mutual_information, total_variation
from medfed.study.injection import InjectionSettings, RouterSettings

WIDTH, P = 16, 5


def described(seed: int, *lengths: int, scale: float = 1.0) -> Description:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    values = torch.randn(len(lengths), max(lengths), WIDTH, generator=generator) * scale
    return Description(values * mask.unsqueeze(-1), mask)


def router(**changes: object) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Router(WIDTH, P, RouterSettings.model_validate({"key_dim": 8, **changes}))


def by_hand(found: Router, task: Tensor, modality: Tensor, *, softmax: bool) -> Tensor:
    """Eq. 4 for one task, without padding."""
    task, modality = (part / part.square().mean(-1, keepdim=True).sqrt() for part in (task, modality))
    scores = (modality @ found.query.weight.T) @ (task @ found.key.weight.T).T / math.sqrt(8)
    beta = (scores.softmax(-1) if softmax else scores) @ (task @ found.value.weight.T)
    alpha: Tensor = found.mlp(beta.mean(0)).softmax(-1)
    return alpha


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_it_is_equation_4_whatever_the_padding(attention: str) -> None:
    found, task, modality = router(attention=attention), described(1, 7, 3), described(2, 2, 4)
    alpha = found(task, modality)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(2))
    for row in range(2):
        told, asked = (part.embeddings[row][part.mask[row]] for part in (task, modality))
        torch.testing.assert_close(alpha[row], by_hand(found, told, asked, softmax=attention == "softmax"))


def of_recipe(name: str) -> Router:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Router(WIDTH, P, InjectionSettings.model_validate({"recipe": name}).router)


def as_printed(found: Router, task: Tensor, modality: Tensor, *, inner: bool) -> list[float]:
    """Eq. 4 token by token in plain numbers: Wq M, Wk T, Wv T, their products, the mean over M, MLP, softmax."""
    keys, values = ([(layer.weight @ token).tolist() for token in task] for layer in (found.key, found.value))
    pooled = [0.0] * len(keys[0])
    for m in modality:
        query = (found.query.weight @ m).tolist()
        scores = [sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys]
        if inner:
            total = sum(map(math.exp, scores))
            scores = [math.exp(score) / total for score in scores]
        for score, value in zip(scores, values, strict=True):
            pooled = [p + score * v / len(modality) for p, v in zip(pooled, value, strict=True)]
    logits = [math.exp(z) for z in found.mlp(torch.tensor(pooled)).tolist()]
    return [z / sum(logits) for z in logits]


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_the_router_of_a_recipe_is_eq_4_as_the_paper_prints_it_or_its_code_computes_it(recipe: str) -> None:
    found, task, modality = of_recipe(recipe), described(1, 7, 3), described(2, 2, 4)
    alpha = found(task, modality)
    for row in range(2):
        told, asked = (part.embeddings[row][part.mask[row]] for part in (task, modality))
        expected = as_printed(found, told, asked, inner=recipe == "released")
        print(f"{recipe}, task {row}: {[round(value, 4) for value in expected]}")
        assert alpha[row].tolist() == pytest.approx(expected, abs=1e-6)
        assert alpha[row].tolist() != pytest.approx(as_printed(found, told, asked, inner=recipe == "paper"), abs=1e-4)


def test_the_released_router_is_as_wide_as_the_llm_and_ends_in_one_linear_layer() -> None:
    found = of_recipe("released")
    assert [tuple(part.weight.shape) for part in (found.query, found.key, found.value)] == [(WIDTH, WIDTH)] * 3
    assert [tuple(value.shape) for value in found.mlp.parameters()] == [(P, WIDTH), (P,)]


@pytest.mark.parametrize("switch", ["use_task_description", "use_modality_description"])
def test_an_ablated_description_has_no_say(switch: str) -> None:
    found = router(**{switch: False})
    task, modality = described(1, 7, 3), described(2, 2, 4)
    changed = (described(5, 6, 4), modality) if switch == "use_task_description" else (task, described(5, 6, 4))
    assert torch.equal(found(task, modality), found(*changed))
    kept = (task, described(5, 6, 4)) if switch == "use_task_description" else (described(5, 6, 4), modality)
    assert not torch.allclose(found(task, modality), found(*kept))
    assert not torch.allclose(router()(task, modality), router()(*changed)), "unablated, it has"


def test_a_router_without_any_description_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither description"):
        RouterSettings(use_task_description=False, use_modality_description=False)


def test_without_normalisation_small_embeddings_route_all_tasks_alike() -> None:
    task, modality = described(1, 7, 3, scale=0.02), described(2, 2, 4, scale=0.02)
    distance = {on: total_variation(router(normalise_embeddings=on)(task, modality)) for on in (True, False)}
    print(f"total variation between two tasks: normalised {distance[True]:.4f}, not normalised {distance[False]:.4f}")
    assert distance[True] is not None
    assert distance[False] is not None
    assert distance[True] > 5 * distance[False]


def test_entropy_and_total_variation_have_their_closed_forms() -> None:
    alpha = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    print("entropies ln 4, 0, ln 2; distances 0.75 (1,2), 0.5 (1,3), 0.5 (2,3): mean 1.75/3")
    torch.testing.assert_close(entropy(alpha), torch.tensor([math.log(4), 0.0, math.log(2)]))
    assert total_variation(alpha) == pytest.approx(1.75 / 3)
    assert total_variation(alpha[:1]) is None


def test_mutual_information_is_what_the_expert_tells_of_the_task() -> None:
    print("one expert per task among 2 tasks: ln 2; the same mixture for both: 0")
    torch.testing.assert_close(mutual_information(torch.eye(2)), torch.tensor(math.log(2)))
    torch.testing.assert_close(mutual_information(torch.tensor([[0.3, 0.7], [0.3, 0.7]])), torch.tensor(0.0))


def test_a_weight_that_underflows_leaves_the_gradient_finite() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    mutual_information(logits.softmax(-1)).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
