"""A federated round in one process against the bare local training it contains.

The bare form loads the global weights and runs the same batches through the same optimizer. It has no gate, no
fingerprint, no records and no sums. Averaged afterwards, outside the clock, it gives the round's new model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.bytes import size
from benchmarks.rows import Row, Target, counted, peaks
from benchmarks.timing import Bench, Versus
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch, Params
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import InProcessExchange, Trainer
from medfed.federated.local import steps
from medfed.federated.rounds import initial_state, run_round
from medfed.models.base import FederatedModel
from medfed.runs.federation import build_model
from medfed.study.algorithms import FedAvg
from medfed.study.federation import ClientSettings, RoundSettings, UploadDtype
from medfed.study.study import Study, load_study
from medfed.tasks.base import Task, TaskSet

DEMO = Path(__file__).parents[1] / "studies" / "demo.toml"
ROUND, BARE, SEED = "federated round", "bare local training", 0
SETTINGS = ClientSettings(lr=1e-3, batch_size=32)
Step = list[tuple[Task, Batch]]


def round_rows(bench: Bench) -> Iterator[Row]:
    """A round of the demo: five hospitals, four tasks, its model and as many examples."""
    study = load_study(DEMO)
    each, clients = (8, 2) if bench.quick else (140, 5)
    hospitals = [_hospital(study, f"hospital-{number}", each, number) for number in range(clients)]
    variants = {ROUND: _round(study, hospitals), BARE: _bare(study, hospitals)}
    setting = f"the demo's model, {clients} clients with {each} examples of each of four tasks, one epoch, batch 32"
    pair = Versus(ROUND, BARE, Target("≤", 1.05), same=True, wall=True)
    yield from bench.race("round", setting, variants, [pair], seconds=40.0, tolerance=1e-6)
    few = [_hospital(study, f"hospital-{number}", min(each, 32), number) for number in range(clients)]
    single = "bare local training of one client"  # what is held at once does not grow with the number of its steps
    yield peaks("round", setting, {ROUND: _round(study, few), single: _bare(study, few[:1])}, ROUND, single)


def wire_rows(bench: Bench) -> Iterator[Row]:
    """Yield the upload of a round in every dtype, and its distance between the mean update and the exact one."""
    study, (each, clients) = load_study(DEMO), (4, 2) if bench.quick else (70, 5)
    hospitals = [_hospital(study, f"hospital-{number}", each, number) for number in range(clients)]
    setting = (
        f"the demo's model, {clients} clients with {each} examples of each of four tasks, bytes a client and round"
    )
    sent, model = dict[str, int](), build_model(study)
    start = initial_state(model, FedAvg())
    exact: Params = {}
    for dtype in get_args(UploadDtype):
        exchange = InProcessExchange(hospitals, Trainer(model, FedAvg(), SETTINGS, SEED, upload_dtype=dtype))
        federation, settings = Federation(exchange.registered, SEED), RoundSettings(upload_dtype=dtype)
        result = run_round(start, exchange, FedAvg(), federation, settings)
        record, exact = result.clients[0], exact or result.state.params
        sent[dtype] = record.up_bytes
        over = (f"upload in {dtype}", float(record.up_bytes))
        if dtype == "float32":
            yield counted("wire", setting, over, ("download", float(record.down_bytes)), takes=size(record.up_bytes))
            continue
        off = 100 * _distance(result.state.params, exact) / _distance(exact, start.params)
        reported = "not known" if result.upload_error is None else f"{100 * result.upload_error:.3f} %"
        note = f"error of the mean update: reported {reported}, exactly {off:.3f} %"
        under = ("in float32", float(sent["float32"]))
        yield counted("wire", setting, over, under, takes=size(record.up_bytes), note=note)


def _distance(one: Params, other: Params) -> float:
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def made_up(study: Study, task: Task, number: int, seed: int, name: str = "made-up") -> TaskSet:
    """Return examples of noise, of the study's shapes."""
    rng = np.random.default_rng(seed)
    shapes = {modality: study.modality(modality).sample_shape for modality in task.modalities}
    samples = {modality: rng.normal(size=(number, *shape)).astype(np.float32) for modality, shape in shapes.items()}
    return TaskSet.from_arrays(task, samples, np.arange(number) % 2, name)


def _hospital(study: Study, name: str, number: int, seed: int) -> Client:
    return Client(name, {task.name: made_up(study, task, number, seed, name) for task in study.train_tasks})


def _round(study: Study, hospitals: list[Client]) -> Callable[[], Mapping[str, Tensor]]:
    model, algorithm = build_model(study), FedAvg()
    state = initial_state(model, algorithm)

    def run() -> Mapping[str, Tensor]:
        exchange = InProcessExchange(hospitals, Trainer(model, algorithm, SETTINGS, SEED))
        federation = Federation(exchange.registered, SEED)
        return run_round(state, exchange, algorithm, federation, RoundSettings()).state.params

    return run


def _bare(study: Study, hospitals: list[Client]) -> Callable[[], object]:
    model = build_model(study)
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    order = {client.id: list(_positions(client)) for client in hospitals}

    def run() -> object:
        trained = [_trained(model, start, client, order[client.id]) for client in hospitals]
        return lambda: _mean(trained)

    return run


def _positions(client: Client) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Yield which examples every step of the round sees: the library's draw."""
    for batches in steps(client.tasks, SETTINGS, SEED, client.id, 1, "train"):
        yield [
            (task.name, np.array([int(name.rpartition("-")[2]) for name in batch.examples]))
            for task, batch, _ in batches
        ]


def _trained(
    model: FederatedModel,
    start: Mapping[str, Tensor],
    client: Client,
    order: list[list[tuple[str, np.ndarray]]],
) -> dict[str, Tensor]:
    model.load_state_dict(start)
    model.train()
    reached = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.Adam(reached, SETTINGS.lr, fused=True)
    with torch_seeded(SEED, client.id, 1, "train"):
        for step in order:
            optimizer.zero_grad()
            for name, positions in step:
                examples = client.tasks[name]
                samples = {
                    modality: torch.from_numpy(examples.data.samples[modality][positions])
                    for modality in examples.task.modalities
                }
                present = {modality: torch.ones(len(positions), dtype=torch.bool) for modality in samples}
                target = torch.from_numpy(examples.labels.targets[positions])
                outputs = model(examples.task, Batch(samples, present, target))
                (F.cross_entropy(outputs, target) / len(step)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def _mean(trained: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the clients' models, which have equally many examples."""
    return {name: torch.stack([weights[name] for weights in trained]).mean(0) for name in trained[0]}
