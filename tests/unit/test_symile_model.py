"""The Symile model: unit vectors, the learned temperature, three-way information, and a small federation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from medfed.core.catalog import TASKS
from medfed.core.errors import StudyError
from medfed.core.rng import numpy_rng
from medfed.core.torch_rng import torch_rng, torch_seeded
from medfed.core.types import Batch
from medfed.data.decode import decode
from medfed.datasets.base import write_twin
from medfed.datasets.decoded import Decoded
from medfed.datasets.symile_mimic import SymileMIMIC
from medfed.evaluation.scorers import SCORERS
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.rounds import initial_state, run_rounds
from medfed.federated.state import load_weights
from medfed.modalities.base import Modality
from medfed.modalities.image import ImageModality
from medfed.modalities.signal import SignalModality
from medfed.modalities.timeseries import LabPercentiles
from medfed.models.symile import SymileModel
from medfed.study.algorithms import FedAvg
from medfed.study.data import TwinSpec
from medfed.study.encoders import Conv1dSpec, LabsMLPSpec, ViTMini
from medfed.study.federation import ClientSettings, RoundSettings
from medfed.study.models import SymileSpec
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.retrieval import Retrieval
from medfed.twins.symile import draw_physiology

NAMES = ("image", "ecg", "lab-percentiles")
every = pytest.mark.parametrize("name", ["symile", "symile-pairwise"])


def retrieval(name: str) -> Retrieval:
    task = TASKS[name]
    assert isinstance(task, Retrieval)
    return task


def flat_model(tasks: tuple[Task, ...], spec: SymileSpec | None = None, num: int = 3) -> SymileModel:
    """A model of three flat modalities, each ``2 · num`` numbers."""
    modalities: dict[str, Modality] = {name: LabPercentiles(name=name, num_labs=num) for name in NAMES}
    encoders: dict[str, EncoderSpec] = {name: LabsMLPSpec(dim=16, hidden=(32,)) for name in NAMES}
    with torch_seeded("flat"):
        return (spec or SymileSpec(dim=16)).build(encoders, modalities, tasks)


def flat_batch(values: Tensor, present: Tensor | None = None) -> Batch:
    here = torch.ones(values.shape[:2], dtype=torch.bool) if present is None else present
    return Batch(
        {name: values[:, k] for k, name in enumerate(NAMES)},
        {name: here[:, k] for k, name in enumerate(NAMES)},
        torch.ones(len(values)),
        tuple(f"e{number}" for number in range(len(values))),
    )


def random_batch(present: Tensor | None = None) -> Batch:
    return flat_batch(torch.randn(5, 3, 6, generator=torch_rng("flat batch")), present)


@every
def test_representations_have_length_one_and_zero_where_absent(name: str) -> None:
    task, present = retrieval(name), torch.ones(5, 3, dtype=torch.bool)
    present[2, 1] = present[4, 0] = False
    vectors = flat_model((task,)).representations(task, random_batch(present))
    assert tuple(vectors) == NAMES
    lengths = torch.stack([vectors[each].norm(dim=1) for each in NAMES], 1)
    torch.testing.assert_close(lengths, present.float())


@pytest.mark.parametrize(("name", "order"), [("symile", 3), ("symile-pairwise", 2)])
def test_products_of_outputs_are_scaled_logits(name: str, order: int) -> None:
    task = retrieval(name)
    model = flat_model((task,), SymileSpec(dim=16, temperature=0.25))
    unit, outputs = model.representations(task, random_batch()), model(task, random_batch())
    kept = NAMES[:order]
    expected = 4 * 16 ** (order / 2 - 1) * torch.stack([unit[each] for each in kept]).prod(0).sum(-1)
    torch.testing.assert_close(outputs[:, :order].prod(1).sum(-1), expected)


def test_an_aligned_triple_has_the_logit_of_an_aligned_pair() -> None:
    """Vectors of entries ±1/√d: a pair's product is 1, a triple's is 1/√d, and dim^(order/2 − 1) makes up for it."""
    signs = torch.ones(64) / 8
    assert float(signs.pow(3).sum() * 64 ** (3 / 2 - 1)) == pytest.approx(float(signs.pow(2).sum()))


def test_the_scale_is_learned_and_bounded() -> None:
    task = retrieval("symile")
    model = flat_model((task,), SymileSpec(dim=16, temperature=0.07, max_scale=100))
    head = model.heads["symile"]
    assert float(head()) == pytest.approx(1 / 0.07)
    task.loss(model(task, random_batch()), random_batch()).backward()
    assert head.logit_scale.grad is not None
    assert head.logit_scale.grad.abs() > 0
    with torch.no_grad():
        head.logit_scale.fill_(50.0)
    assert float(head()) == pytest.approx(100)


@every
def test_an_absent_modality_gives_its_encoder_no_gradient(name: str) -> None:
    task, present = retrieval(name), torch.ones(5, 3, dtype=torch.bool)
    present[:, 1] = False
    model, batch = flat_model((task,)), random_batch(present)
    loss = task.loss(model(task, batch), batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(param.grad is None for param in model.encoders["ecg"].parameters())
    reached = any(param.grad is not None and param.grad.any() for param in model.encoders["image"].parameters())
    assert reached == (name == "symile-pairwise")  # no triple is complete, but film and blood still are a pair


@every
def test_bfloat16_keeps_the_loss(name: str) -> None:
    task, batch = retrieval(name), random_batch()
    outputs = flat_model((task,))(task, batch).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = task.loss(outputs, batch)
    assert float(low) == pytest.approx(float(task.loss(outputs, batch)), rel=1e-6)


def test_other_kinds_of_task_are_refused() -> None:
    with pytest.raises(StudyError, match=r"task 'cd': the model 'symile' aligns modalities"):
        flat_model((TASKS["cd"].model_copy(update={"modalities": NAMES}),))


def signs_of(count: int) -> tuple[Tensor, Tensor]:
    """The twin's three-way part alone: film, ECG and blood signs, and the film's pattern as a number below 8."""
    drawn = [draw_physiology(numpy_rng("signs", number)) for number in range(count)]
    signs = torch.tensor(np.array([[body.film, body.ecg, body.blood] for body in drawn]), dtype=torch.float32)
    pattern = ((signs[:, 0] > 0) * torch.tensor([1, 2, 4])).sum(1)
    return torch.cat([signs, torch.ones_like(signs)], 2), pattern


@pytest.mark.parametrize(("name", "learns"), [("symile", True), ("symile-pairwise", False)])
def test_only_symile_learns_the_three_way_part_of_the_twin(name: str, learns: bool) -> None:
    """Choose among the eight possible films by ECG and blood signs; chance is 1/8.

    All 64 pairs of ECG and blood signs are asked, so five standard errors of chance are 5·√(1/8·7/8/64) = 0.21.
    """
    task = retrieval(name)
    model, (values, _) = flat_model((task,)), signs_of(1024)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(240):
        batch = flat_batch(values[torch.randint(len(values), (64,), generator=torch_rng("step", step))])
        optimizer.zero_grad()
        task.loss(model(task, batch), batch).backward()
        optimizer.step()
    each = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    ecg, blood = each.repeat_interleave(8, 0), each.repeat(8, 1)
    with torch.no_grad():
        asked = flat_batch(torch.stack([torch.cat([part, torch.ones(64, 3)], 1) for part in (ecg, ecg, blood)], 1))
        films = flat_batch(torch.cat([each, torch.ones(8, 3)], 1)[:, None].expand(8, 3, 6))
        scores = task.scores(model(task, asked)[:, 1:], torch.ones(64, 2, dtype=torch.bool), model(task, films)[:, 0])
    right = (each[scores.argmax(1)] == -ecg * blood).all(1).float().mean()
    print(f"{name}: {float(right):.2f} right")
    assert (right > 0.9) == learns
    assert learns or right < 1 / 8 + 0.21


MODALITIES: dict[str, Modality] = {
    "image": ImageModality(),
    "ecg": SignalModality(length=200),
    "lab-percentiles": LabPercentiles(),
}
ENCODERS: dict[str, EncoderSpec] = {
    "image": ViTMini(),
    "ecg": Conv1dSpec(num_blocks=3),
    "lab-percentiles": LabsMLPSpec(),
}


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    dataset, root = SymileMIMIC(), tmp_path_factory.mktemp("twin")
    write_twin(dataset, root, TwinSpec(num_patients=300, image_size=64))
    data = decode(dataset, root, MODALITIES)
    rows = rows_of(data, "train")
    return data.normalised(MODALITIES, {name: data.moments(MODALITIES[name], rows) for name in MODALITIES})


def rows_of(data: Decoded, split: str) -> np.ndarray:
    return np.flatnonzero(data.index["split"].to_numpy() == split)


@every
def test_a_small_federation_learns_to_retrieve(normalised: Decoded, name: str) -> None:
    """Three hospitals, eight rounds. Chance is a rank percentile of 0.5 with a standard error of 0.29/√n."""
    task, settings = retrieval(name), ClientSettings(lr=1e-3, optimizer="adamw", weight_decay=0.01)
    rows = np.array_split(rows_of(normalised, "train"), 3)
    clients = [Client(f"h{number}", {name: TaskSet(task, normalised, part)}) for number, part in enumerate(rows)]
    with torch_seeded("model"):
        model = SymileSpec().build(ENCODERS, MODALITIES, (task,))
    algorithm, rounds = FedAvg(), RoundSettings(num_rounds=8)
    federation = Federation({client.id: client.num_examples for client in clients}, 0)
    exchange = InProcessExchange(clients, Trainer(model, algorithm, settings, 0))
    results = list(run_rounds(initial_state(model, algorithm), exchange, algorithm, federation, rounds))
    losses = [np.mean([client.metrics[f"loss.{name}"] for client in result.clients]) for result in results]
    load_weights(model, results[-1].state.weights)
    test = TaskSet(task, normalised, rows_of(normalised, "test"))
    with torch.inference_mode():
        responses = task.respond(model.eval(), test)
    values = SCORERS["retrieval"].scored(task.truths(test), responses).values(np.ones((1, len(test))))
    print({metric: round(float(value[0]), 3) for metric, value in values.items()}, [round(x, 2) for x in losses])
    assert losses[-1] < 0.9 * losses[0]
    assert values["rank_percentile"][0] > 0.5 + 4 * 0.29 / np.sqrt(len(test))
    assert responses[0]["listed_candidates"] == 10
