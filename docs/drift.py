"""Client drift: FedAvg against SCAFFOLD and FedNova, on quadratics and on a twin split by Dirichlet(0.2).

python docs/drift.py        writes docs/drift.md, docs/drift-quadratics.png and docs/drift-twin.png; a CPU minute

Everything runs through the library's clients, gate and rounds. The loss is what FedAvg minimises: the clients' training
losses weighed by examples. So SCAFFOLD weighs by examples here too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # for the quadratics of the theory tests

from medfed.core.progress import Reporter  # noqa: E402
from medfed.data.cohort import Cohort, cohort_of  # noqa: E402
from medfed.data.decode import Reading, decode_all  # noqa: E402
from medfed.data.sources import find_sources  # noqa: E402
from medfed.federated.algorithm import Federation  # noqa: E402
from medfed.federated.client import Client  # noqa: E402
from medfed.federated.exchange import InProcessExchange, Trainer  # noqa: E402
from medfed.federated.rounds import initial_state, run_rounds  # noqa: E402
from medfed.federated.state import load_weights  # noqa: E402
from medfed.modalities.base import Modality  # noqa: E402
from medfed.models.base import Encoder  # noqa: E402
from medfed.runs.federation import build_model  # noqa: E402
from medfed.study.algorithms import AlgorithmSettings, FedAvg, FedNova, Scaffold  # noqa: E402
from medfed.study.federation import ClientSettings, RoundSettings  # noqa: E402
from medfed.study.parts import EncoderSpec  # noqa: E402
from medfed.study.study import Study  # noqa: E402
from medfed.tasks.base import trainable  # noqa: E402
from sections import measured  # noqa: E402
from support.federated_toys import Point, quadratic_client  # noqa: E402

CAUGHT_UP = 1.01
"""A loss has reached another within 1 %."""
SCAFFOLDS: dict[str, AlgorithmSettings] = {
    "SCAFFOLD, option I": Scaffold(option="I", weighting="examples"),
    "SCAFFOLD, option II": Scaffold(weighting="examples"),
}


@dataclass(frozen=True)
class Curves:
    """An experiment.

    Attributes:
        title: of the table and the plot.
        setting: what was held fixed.
        losses: algorithm → loss after each round.
        window: rounds of which a loss is the mean, where mini-batches make single rounds jump.
    """

    title: str
    setting: str
    losses: Mapping[str, list[float]]
    window: int = 1

    def smoothed(self, name: str) -> list[float]:
        """Means over the last ``window`` rounds; infinite before there are so many."""
        losses, window = self.losses[name], self.window
        means = [float(np.mean(losses[end - window : end])) for end in range(window, len(losses) + 1)]
        return [float("inf")] * (window - 1) + means

    def final(self, name: str) -> float:
        """The loss at the end."""
        return self.smoothed(name)[-1]

    def rounds_to_fedavg(self, name: str) -> int | None:
        """The first round that reaches FedAvg's final loss, or None."""
        level = CAUGHT_UP * self.final("FedAvg")
        return next((number for number, loss in enumerate(self.smoothed(name), 1) if loss <= level), None)


def run(
    algorithm: AlgorithmSettings,
    clients: list[Client],
    model: Callable[[], nn.Module],
    settings: ClientSettings,
    num_rounds: int,
    loss: Callable[[nn.Module], float],
) -> list[float]:
    """Return the loss of the global model after every round."""
    algorithm.check(settings)
    exchange = InProcessExchange(clients, Trainer(model(), algorithm, settings, 0))
    federation, watched = Federation(exchange.registered, 0), model()
    losses = []
    for result in run_rounds(
        initial_state(watched, algorithm), exchange, algorithm, federation, RoundSettings(num_rounds=num_rounds)
    ):
        load_weights(watched, result.state.weights)
        losses.append(loss(watched))
    return losses


# --- quadratics: F_i(w) = ½ Σ_d a_id (w_d − b_id)² ---

NUM_CLIENTS, DIM = 5, 3


def quadratics(
    algorithms: Mapping[str, AlgorithmSettings], title: str, lr: float, sizes: list[int], rounds: int
) -> Curves:
    """Run ``algorithms`` on clients of unlike curvature; one epoch of batches of ten."""
    rng = np.random.default_rng(0)
    curvature, centre = 10 ** rng.uniform(-1, 0.7, (NUM_CLIENTS, DIM)), 2 + 3 * rng.normal(size=(NUM_CLIENTS, DIM))
    share = np.array(sizes)[:, None] / sum(sizes)
    optimum = (share * curvature * centre).sum(0) / (share * curvature).sum(0)

    def objective(point: np.ndarray) -> float:
        return float(0.5 * (share * curvature * (point - centre) ** 2).sum())

    def excess(model: nn.Module) -> float:
        return objective(dict(model.named_parameters())["w"].detach().numpy()) - objective(optimum)

    clients = [
        quadratic_client(f"h{i}", curvature[i].tolist(), centre[i].tolist(), size) for i, size in enumerate(sizes)
    ]
    settings = ClientSettings(optimizer="sgd", lr=lr, batch_size=10)
    losses = {
        name: run(algorithm, clients, lambda: Point(DIM), settings, rounds, excess)
        for name, algorithm in algorithms.items()
    }
    steps = sorted({size // 10 for size in sizes})
    counted = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])
    return Curves(title, f"{NUM_CLIENTS} clients, {counted} local steps, learning rate {lr}", losses)


def unlike_curvature() -> Curves:
    """Equal steps; FedAvg stops short of the optimum because clients of high curvature forget x sooner."""
    algorithms = {"FedAvg": FedAvg(), **SCAFFOLDS}
    return quadratics(algorithms, "Quadratics, equal steps", 0.1, [50] * NUM_CLIENTS, 40)


def unequal_steps() -> Curves:
    """Small learning rate, so that unequal steps are all that biases FedAvg."""
    algorithms: dict[str, AlgorithmSettings] = {"FedAvg": FedAvg(), "FedNova": FedNova()}
    return quadratics(algorithms, "Quadratics, unequal steps", 0.02, [10, 20, 30, 60, 120], 40)


# --- a twin: PneumoniaMNIST's, five hospitals by Dirichlet(0.2) ---


class Pixels(Encoder):
    """Averages to 14 × 14 pixels; nothing to learn, so the classifier is all but linear and its loss all but convex."""

    dim = 14 * 14

    def forward(self, samples: Tensor) -> Tensor:
        """Return one token of pixels."""
        return F.adaptive_avg_pool2d(samples, 14).flatten(1)[:, None]


class PixelsSpec(EncoderSpec):
    """Settings of :class:`Pixels`."""

    name: ClassVar[str] = "pixels"
    dim: int = 14 * 14

    def build(self, modality: Modality) -> Encoder:
        """Return the encoder."""
        return Pixels()


def twin(lr: float = 0.02, local_epochs: int = 10, num_rounds: int = 100) -> Curves:
    """All algorithms on the twin; hospitals differ in size, so in local steps as well as in labels."""
    study = Study.model_validate(
        {
            "name": "drift",
            "train": ["pneumonia"],
            "algorithm": "fedavg",
            "twins": {"num_patients": 400},
            "modalities": {"image": {"size": 28}},
            "encoders": {"image": PixelsSpec()},
            "partition": {"scheme": "dirichlet", "alpha": 0.2},
        }
    )
    with tempfile.TemporaryDirectory(prefix="medfed-") as folder:
        reading = Reading(Reporter.silent())
        sources = find_sources(study, None, Path(folder), reading.reporter)
        cohort = cohort_of(study, sources, decode_all(study, sources.roots, reading), reading)
    clients = [Client(name, tasks) for name, tasks in sorted(cohort.clients.items())]
    settings = ClientSettings(optimizer="sgd", lr=lr, batch_size=32, local_epochs=local_epochs)
    algorithms = {"FedAvg": FedAvg(), **SCAFFOLDS, "FedNova": FedNova()}
    losses = {
        name: run(
            algorithm, clients, lambda: build_model(study), settings, num_rounds, lambda m: pooled_loss(m, cohort)
        )
        for name, algorithm in algorithms.items()
    }
    held = ", ".join(str(client.num_examples) for client in clients)
    setting = f"hospitals of {held} images, {local_epochs} local epochs of batches of 32, learning rate {lr}"
    return Curves("Twin of PneumoniaMNIST, Dirichlet(0.2)", setting, losses, window=5)


@torch.inference_mode()
def pooled_loss(model: nn.Module, cohort: Cohort) -> float:
    """Return the mean loss over all clients' training examples."""
    model.eval()
    sums = [
        (float(trainable(examples.task).loss(model(examples.task, batch), batch)) * len(batch), len(batch))
        for tasks in cohort.clients.values()
        for examples in tasks.values()
        for batch in examples.batches(256)
    ]
    return sum(loss for loss, _ in sums) / sum(count for _, count in sums)


# --- the page ---

HEAD = """# Client drift

A client that takes many local steps walks towards its own optimum. The mean of such walks is not a step towards the
optimum of all, so FedAvg ends at another point. SCAFFOLD corrects every local step by control variates. FedNova
keeps clients with more steps from counting more.

On quadratics the loss is the distance to the optimum's loss, so 0 is perfect. On the twin it is the training loss
pooled over all hospitals, a mean over five rounds. The runs have one seed, and one learning rate for all
algorithms. The drift of unlike curvature remains for FedNova, which does not claim to correct it. SCAFFOLD's option
I has its limit: at a learning rate of 0.05 it diverged on this twin, and option II did not. Its control is the
gradient at x, and forty steps lead far from there; this is presumably the reason.

(Made by `python docs/drift.py`, with the library's clients, gate and rounds. A test checks the claims on
quadratics.)
"""


def page(groups: list[Curves]) -> str:
    """Return the page's text."""
    pictures = "![Quadratics](drift-quadratics.png)\n\n![Twin](drift-twin.png)\n"
    return "\n".join([HEAD, *(line for curves in groups for line in section(curves)), pictures, f"{measured.here()}\n"])


def section(curves: Curves) -> Iterator[str]:
    """Yield one experiment's table."""
    yield f"## {curves.title}\n\n{curves.setting[0].upper()}{curves.setting[1:]}.\n"
    yield "| algorithm | loss at the end | rounds to FedAvg's |"
    yield "|---|--:|--:|"
    for name, losses in curves.losses.items():
        rounds = curves.rounds_to_fedavg(name)
        yield f"| {name} | {curves.final(name):.2g} | {rounds if rounds else f'not in {len(losses)}'} |"
    yield ""


def draw(groups: list[Curves], file: Path) -> None:
    """Draw the losses of ``groups`` side by side."""
    import matplotlib  # noqa: PLC0415 (the numbers need no plots)

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 3.6), squeeze=False, layout="constrained")
    for axis, curves in zip(axes[0], groups, strict=True):
        for name, losses in curves.losses.items():
            axis.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1.4)
        best = max(min(curves.final(name) for name in curves.losses), 1e-8)
        axis.set(yscale="log", xlabel="round", ylabel="loss", title=curves.title)
        axis.set_ylim(0.7 * best, 3 * max(losses[0] for losses in curves.losses.values()))
        axis.legend(frameon=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    toys, real = [unlike_curvature(), unequal_steps()], [twin()]
    draw(toys, ROOT / "docs" / "drift-quadratics.png")
    draw(real, ROOT / "docs" / "drift-twin.png")
    (ROOT / "docs" / "drift.md").write_text(page([*toys, *real]), encoding="utf-8")
