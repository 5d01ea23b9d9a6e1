"""MOON's term against a slow oracle written from the paper: plain loops over examples, float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from medfed.algorithms.representations import pull_push
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Broadcast
from medfed.federated.local import LocalStep, Site, TaskBatch
from medfed.federated.state import Weights, fingerprint, join, load_weights, weights_of
from medfed.models.multimodal import MultimodalModel
from medfed.study.algorithms import Moon
from support.federated_toys import SMALL, TASK_X, TASK_Y, small_model, task_set


def jittered(number: int) -> Weights:
    """Weights of a small model, off its initial ones, with batch-norm statistics of their own."""
    rng = torch.Generator().manual_seed(number)
    params, buffers = weights_of(small_model())
    params = {name: value + 0.5 * torch.randn(value.shape, generator=rng) for name, value in params.items()}
    buffers = {
        name: value + torch.rand(value.shape, generator=rng) if value.is_floating_point() else value
        for name, value in buffers.items()
    }
    return Weights(params, buffers)


def model_at(weights: Weights) -> MultimodalModel:
    model = small_model()
    load_weights(model, weights)
    return model


@pytest.fixture
def step() -> LocalStep:
    """A step on six examples of x and five of y, one of which lacks modality b."""
    sets = {"x": task_set(TASK_X, 6, 1), "y": task_set(TASK_Y, 5, 2)}
    sets["y"].data.present["b"][3] = False
    batches = tuple(TaskBatch(part.task, part.batch(np.arange(len(part))), 0.5) for part in sets.values())
    model = model_at(jittered(1)).train()
    return LocalStep(Site("h", model, sets, {}, SMALL, 0), 0, dict(model.named_parameters()), batches)


LIVE, GLOBAL, PREVIOUS = jittered(1), jittered(2), jittered(3)
BROADCAST = Broadcast(2, "base", GLOBAL.params, GLOBAL.buffers)
KEPT = join({"params": PREVIOUS.params, "buffers": PREVIOUS.buffers})


def cosine(one: Tensor, other: Tensor) -> Tensor:
    pairs = ((one, other), (one, one), (other, other))
    dot, first, second = (sum(a * b for a, b in zip(u, v, strict=True)) for u, v in pairs)
    return dot / (first.sqrt() * second.sqrt())


def slow(step: LocalStep, previous: Weights, mu: float, tau: float) -> Tensor:
    """μ·mean over tasks of the mean over modalities of the mean over present examples of Eq. 4."""
    live, anchor, past = step.site.model, model_at(GLOBAL).eval(), model_at(previous).eval()
    total = torch.zeros((), dtype=torch.float64)
    for task, batch, _ in step.batches:
        views = [model.representations(task, batch) for model in (live, anchor, past)]
        by_modality = []
        for name in task.modalities:
            terms = []
            for row in range(len(batch)):
                if batch.present[name][row]:
                    z, near, far = (view[name][row].double() for view in views)
                    pull, push = (cosine(z, other.detach()) / tau for other in (near, far))
                    terms.append(-torch.log(pull.exp() / (pull.exp() + push.exp())))
            by_modality.append(sum(terms) / len(terms))
        total = total + sum(by_modality) / len(by_modality) / len(step.batches)
    return mu * total


def gradients(loss: Tensor, step: LocalStep) -> dict[str, Tensor]:
    names = [name for name in step.params if name.startswith("encoders.")]
    return dict(zip(names, torch.autograd.grad(loss, [step.params[name] for name in names]), strict=True))


@pytest.mark.parametrize(("mu", "tau"), [(1.0, 0.5), (5.0, 0.1)])
def test_the_term_is_the_papers(step: LocalStep, mu: float, tau: float) -> None:
    with torch_seeded("dropout"):
        found = Moon(mu=mu, temperature=tau).build().penalty(step, BROADCAST, KEPT)
    with torch_seeded("dropout"):
        expected = slow(step, PREVIOUS, mu, tau)
    assert found is not None
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    mine, theirs = gradients(found, step), gradients(expected, step)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_a_first_round_is_left_out_because_its_gradient_is_zero(step: LocalStep) -> None:
    assert Moon().build().penalty(step, BROADCAST, {}) is None
    with torch_seeded("dropout"):
        same = slow(step, GLOBAL, 1.0, 0.5)
    assert float(same) == pytest.approx(math.log(2))
    assert max(float(value.abs().max()) for value in gradients(same, step).values()) < 1e-7


def test_the_term_leaves_every_model_as_it_is(step: LocalStep) -> None:
    before = fingerprint(*weights_of(step.site.model)), fingerprint(*GLOBAL), fingerprint(KEPT, {})
    assert Moon().build().penalty(step, BROADCAST, KEPT) is not None
    assert before == (fingerprint(*weights_of(step.site.model)), fingerprint(*GLOBAL), fingerprint(KEPT, {}))
    assert all(module.training for module in step.site.model.modules())


def test_three_passes_of_which_one_has_a_graph(step: LocalStep) -> None:
    seen: list[tuple[bool, bool]] = []
    encoder = step.site.model.encoders["b"]
    encoder.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    Moon().build().penalty(step, BROADCAST, KEPT)
    assert seen == [(True, True), (False, False), (False, False)]


@pytest.mark.parametrize(("near", "far"), [(1.0, -1.0), (-1.0, 1.0), (0.3, 0.3)])
def test_pull_push_is_the_softmax_form(near: float, far: float) -> None:
    found = float(pull_push(torch.tensor([near]).double(), torch.tensor([far]).double(), 0.5))
    assert found == pytest.approx(-math.log(math.exp(near / 0.5) / (math.exp(near / 0.5) + math.exp(far / 0.5))))


def test_a_task_without_any_present_modality_has_no_term() -> None:
    part = task_set(TASK_X, 4, 1, absent="a")
    model = small_model().train()
    item = TaskBatch(part.task, part.batch(np.arange(4)), 1.0)
    step = LocalStep(Site("h", model, {"x": part}, {}, SMALL, 0), 0, dict(model.named_parameters()), (item,))
    assert Moon().build().penalty(step, BROADCAST, KEPT) is None
