"""Many clients on one machine: memory and CPU of a server and two worker processes, from 10 to 1,000 clients.

python docs/scale.py        writes docs/scale.md and docs/scale.png; some minutes on two quiet cores

Every cell is a federation of the library (rounds, gate, sums, checkpoints, logs) in a fresh process. Made-up ECGs are
dealt over the clients, so the data is the same however many clients there are.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

from medfed.core.catalog import TASKS
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast, Params
from medfed.data.cohort import Cohort
from medfed.federated.exchange import Answer, ClientExchange
from medfed.records.folder import RunFolder
from medfed.runs.federation import Connect, FederationRun, Trainee, build_model, in_process, in_workers
from medfed.study.study import Study
from medfed.tasks.base import TaskSet
from sections.measured import here as measured_at

DOCS = Path(__file__).parent
NUM_EXAMPLES, LENGTH = 12_000, 250
TASK = TASKS["ead"]
MIB = 2**20


@dataclass(frozen=True)
class Cell:
    """One run. ``workers`` 0 trains the clients in the server's process."""

    algorithm: str = "fedavg"
    clients: int = 100
    rounds: int = 4
    participation: float = 0.1
    workers: int = 2


@dataclass(frozen=True)
class Sample:
    """Time and memory of a process tree before a round, or at the end.

    Attributes:
        wall_seconds, cpu_seconds: since the start; CPU of server and workers.
        server_mib, worker_mib: memory of their own (USS), of the server and of the largest worker.
        peak_mib: largest resident memory so far of the server.
    """

    wall_seconds: float
    cpu_seconds: float
    server_mib: float
    worker_mib: float
    peak_mib: float


class Watched:
    """An exchange that takes a sample before every round and before it is closed."""

    def __init__(self, inner: ClientExchange) -> None:
        self._inner, self.samples = inner, list[Sample]()

    @property
    def registered(self) -> Mapping[str, int]:
        """See the exchange."""
        return self._inner.registered

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        """Take a sample, then let the exchange work."""
        self.samples.append(sample())
        yield from self._inner(round, broadcasts)

    def client_state(self, client: str) -> Params:
        """See the exchange."""
        return self._inner.client_state(client)

    def forget_after(self, round: int) -> None:
        """See the exchange."""
        self._inner.forget_after(round)

    def close(self) -> None:
        """Take the last sample."""
        self.samples.append(sample())
        self._inner.close()


def sample() -> Sample:
    """Look at this process and its children."""
    server = psutil.Process()
    workers = [child for child in server.children() if child.is_running()]
    times = [process.cpu_times() for process in (server, *workers)]
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    return Sample(
        time.monotonic(),
        sum(value.user + value.system for value in times),
        server.memory_full_info().uss / MIB,
        max((worker.memory_full_info().uss / MIB for worker in workers), default=0.0),
        peak,
    )


def study_of(cell: Cell) -> Study:
    """Return the study of a cell; SCAFFOLD takes plain SGD."""
    return Study.model_validate(
        {
            "name": "scale",
            "job": "benchmark",
            "train": [TASK.name],
            "baselines": [],
            "algorithm": cell.algorithm,
            "modalities": {"ecg": {"length": LENGTH}},
            "encoders": {"ecg": "conv1d"},
            "client": {"optimizer": "sgd", "lr": 0.01, "batch_size": 16},
            "rounds": {"num_rounds": cell.rounds, "participation": cell.participation},
            "evaluation": {"watch_every": 0},
        }
    )


def cohort_of(num_clients: int) -> Cohort:
    """Deal the same examples over ``num_clients``."""
    rng = np.random.default_rng(0)
    ecgs = rng.standard_normal((NUM_EXAMPLES, 12, LENGTH), np.float32)
    whole = TaskSet.from_arrays(TASK, {"ecg": ecgs}, rng.integers(0, 2, NUM_EXAMPLES))
    parts = np.array_split(np.arange(NUM_EXAMPLES), num_clients)
    clients = {f"client-{number:04d}": {TASK.name: whole.holding(rows)} for number, rows in enumerate(parts)}
    return Cohort(clients, {}, {}, {}, client_tests={}, moments={}, partition={})


def run_cell(cell: Cell, folder: Path, study: Study | None = None) -> list[Sample]:
    """Run ``cell``, or another study on its clients, here; return a sample before every round and one at the end."""
    torch.set_num_threads(1)
    study, opened = study or study_of(cell), list[Watched]()
    inner: Connect = in_workers(cell.workers) if cell.workers else in_process

    def connect(study: Study, cohort: Cohort, run: RunFolder) -> ClientExchange:
        opened.append(Watched(inner(study, cohort, run)))
        return opened[0]

    federation = FederationRun(
        RunFolder(folder), study, cohort_of(cell.clients), Trainee("federated", build_model(study)), connect
    )
    federation.run(Reporter.silent(), "scale")
    return opened[0].samples


def measured(cell: Cell) -> list[Sample]:
    """Run ``cell`` in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="medfed-scale-") as folder:
        # Not as a script: workers would import it, and all that it imports, again.
        code = f"import sys; sys.path.append({str(DOCS)!r}); import scale; scale.tell(*sys.argv[1:])"
        command = [sys.executable, "-c", code, json.dumps(asdict(cell)), folder]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 (itself)
    return [Sample(**item) for item in json.loads(output.splitlines()[-1])]


def round_costs(samples: list[Sample], clock: str) -> list[float]:
    """Return the seconds of every round but the first, in which workers start and the data is laid out."""
    read = [getattr(item, clock) for item in samples]
    return [after - before for before, after in itertools.pairwise(read[1:])]


# --- the page ---

HEAD = f"""# Many clients on one machine

`medfed run STUDY --workers N` trains the clients in N processes: memory for N models, however many clients there
are. All workers map the clients' data from files. The state that clients keep between rounds is in files too, and
sums take one update at a time.

Below, {NUM_EXAMPLES:,} made-up ECGs are dealt over 10, 100 and 1,000 clients. A tenth of them (or the number in the
table) trains each round, in two workers. Memory is the private memory of a process (USS) after the last round. A
page of the data counts in a worker as long as no other worker has read it. So workers with ten large clients seem
to grow, by one client's data a round. The peak is resident memory. CPU is that of server and workers in the median
round. The first round does not count, because workers start in it. (Made by `python docs/scale.py`, each line in a
fresh process.)
"""
COLUMNS = (
    "algorithm",
    "clients",
    "of them train",
    "examples a round",
    "rounds",
    "server, MiB",
    "a worker, MiB",
    "server's peak, MiB",
    "CPU s a round",
    "CPU ms an example",
)
SIZES = (10, 100, 1000)


def row(cell: Cell, samples: list[Sample]) -> str:
    """Return a line of the table."""
    training = max(1, int(cell.participation * cell.clients + 0.5))
    examples = training * NUM_EXAMPLES // cell.clients
    cpu, last = median(round_costs(samples, "cpu_seconds")), samples[-1]
    memory = f"{last.server_mib:.0f} | {last.worker_mib:.0f} | {last.peak_mib:.0f}"
    first = f"{cell.algorithm} | {cell.clients:,} | {training} | {examples:,} | {cell.rounds}"
    return f"| {first} | {memory} | {cpu:.2f} | {1000 * cpu / examples:.2f} |"


def page(cells: Mapping[Cell, list[Sample]], ratios: Mapping[str, float]) -> str:
    """Return the page's text."""
    lines = [HEAD, f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    lines += [row(cell, samples) for cell, samples in cells.items()]
    lines += ["\n![Memory and cost](scale.png)\n", "## Workers against one process\n"]
    lines += [
        f"A round of FedAvg over {OVERHEAD.clients} clients with two workers, divided by the same round in one "
        "process: "
        f"CPU {ratios['cpu_seconds']:.2f}, wall time {ratios['wall_seconds']:.2f}. "
        "These are medians of rounds that took turns.\n"
    ]
    lines.append(f"{measured_at()}\n")
    return "\n".join(lines)


def draw(cells: Mapping[Cell, list[Sample]], file: Path) -> None:
    """Draw memory by round, and CPU by trained examples."""
    import matplotlib as mpl  # noqa: PLC0415 (a cell needs no plots)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (memory, cost) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for (cell, samples), shade in zip(cells.items(), plt.get_cmap("tab10").colors, strict=False):
        after, label = samples[1:], f"{cell.algorithm}, {cell.clients:,} clients, {cell.participation:.0%}"
        rounds = range(1, len(after) + 1)
        memory.plot(rounds, [item.server_mib for item in after], color=shade, label=label, linewidth=1.3)
        memory.plot(rounds, [item.worker_mib for item in after], color=shade, linestyle=":", linewidth=1.3)
        trained = cell.participation * NUM_EXAMPLES
        cost.plot(trained, median(round_costs(samples, "cpu_seconds")), "o", color=shade)
    memory.set(xlabel="rounds done", ylabel="memory of its own, MiB", title="server (—) and a worker (···)")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False, fontsize=7)
    cost.set(xlabel="examples trained a round", ylabel="CPU seconds a round", title="server and workers together")
    cost.set_xlim(left=0)
    cost.set_ylim(bottom=0)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


CELLS = (
    *(Cell(algorithm, size) for algorithm in ("fedavg", "scaffold") for size in SIZES),
    *(Cell(clients=1000, participation=share) for share in (0.05, 0.2)),
    Cell(clients=1000, rounds=16),
)
OVERHEAD = Cell(rounds=6)
TURNS = 2


def overhead() -> dict[str, float]:
    """Return rounds with two workers over rounds in one process; the two take turns, each in a fresh process."""
    sampled: dict[int, list[Sample]] = {}
    costs: dict[tuple[int, str], list[float]] = {}
    for _ in range(TURNS):
        for workers in (0, 2):
            sampled[workers] = measured(replace(OVERHEAD, workers=workers))
            for clock in ("cpu_seconds", "wall_seconds"):
                costs.setdefault((workers, clock), []).extend(round_costs(sampled[workers], clock))
    return {clock: median(costs[2, clock]) / median(costs[0, clock]) for clock in ("cpu_seconds", "wall_seconds")}


def tell(cell: str, folder: str) -> None:
    """Run the cell, given as JSON, and print its samples."""
    print(json.dumps([asdict(item) for item in run_cell(Cell(**json.loads(cell)), Path(folder))]))


if __name__ == "__main__":
    done = {cell: measured(cell) for cell in CELLS}
    (DOCS / "scale.md").write_text(page(done, overhead()), encoding="utf-8")
    draw(done, DOCS / "scale.png")
