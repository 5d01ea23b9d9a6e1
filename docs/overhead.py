"""The cost of a network: a round over Flower, and in worker processes, against the same round in one process.

python docs/overhead.py        writes docs/overhead.md; three minutes on two cores

Three sites with a folder each and a server with TLS and node keys run in one process, so that one clock sees
everything. Data and study are those of studies/scaffold-3sites.toml, with FedAvg. The sites answer in threads, as
``medfed site join`` does in its process. Rounds of the exchanges alternate; the numbers are ratios of medians, of CPU
and of wall time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cryptography.hazmat.primitives.asymmetric import ec

from medfed.core.progress import Reporter
from medfed.core.types import Failure, Update
from medfed.data.cohort import Cohort, cohort_of
from medfed.data.decode import Reading, decode_all
from medfed.data.sources import find_sources
from medfed.federated.algorithm import Federation
from medfed.federated.client import Client
from medfed.federated.exchange import ClientExchange, Trainer
from medfed.federated.memory import DiskMemory
from medfed.federated.rounds import initial_state, run_round
from medfed.federated.wire import broadcast_of, update_bytes
from medfed.records.folder import RunFolder
from medfed.runs.federation import build_model, clients_of, in_process, in_workers
from medfed.sites.credentials import public_bytes, write_trial
from medfed.sites.network import NetworkServer, NetworkSite
from medfed.sites.remote import Conduct, Message, RemoteExchange
from medfed.study.federation import RoundSettings
from medfed.study.study import Study, load_study
from sections.measured import here as measured_at

ROOT = Path(__file__).parents[1]
SITES = ("site-0", "site-1", "site-2")
NUM_ROUNDS = 6
"""Rounds of each exchange; the first is not counted: threads and processes start in it."""
CASES = (("small", {}, 1), ("small", {}, 4), ("large", {"dim": 256}, 1))
WAIT = 600.0


class Spent(NamedTuple):
    """Seconds of one round."""

    cpu: float
    wall: float


def main() -> None:
    """Measure and write the page."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for size, encoder, epochs in CASES:
            rows.append(measured(size, study_of(encoder, epochs), place / f"{size}-{epochs}"))
    (ROOT / "docs" / "overhead.md").write_text(page(rows), encoding="utf-8")


def study_of(encoder: Mapping[str, Any], epochs: int) -> Study:
    """Return the study with encoders of that size and so many local epochs."""
    study = load_study(
        ROOT / "studies" / "scaffold-3sites.toml", ['algorithm="fedavg"', f"client.local_epochs={epochs}"]
    )
    specs = {name: spec.model_copy(update=dict(encoder)) for name, spec in study.encoders.items()}
    return study.model_copy(update={"encoders": specs})


def measured(size: str, study: Study, place: Path) -> list[str]:
    """Return a row of the table: ratios of the two exchanges to the one in process."""
    reading = Reading(Reporter.silent())
    sources = find_sources(study, None, Path("~/.cache/medfed").expanduser(), reading.reporter)
    cohort = cohort_of(study, sources, decode_all(study, sources.roots, reading), reading)
    clients = clients_of(study, cohort)
    with over_flower(study, clients, place) as flower:
        exchanges: dict[str, ClientExchange] = {
            "here": in_process(study, cohort, RunFolder(place / "here")),
            "flower": flower,
            "workers": in_workers(2)(study, cohort, RunFolder(place / "workers")),
        }
        spent = alternate(study, cohort, exchanges)
        for exchange in exchanges.values():
            exchange.close()
    count = sum(value.numel() for value in build_model(study).parameters())
    here = {kind: statistics.median(getattr(one, kind) for one in spent["here"]) for kind in ("cpu", "wall")}
    cells = [f"{count / 1e6:.1f} M", str(study.client.local_epochs), f"{here['wall']:.2f} s"]
    cells += [ratio(spent["flower"], here, "cpu"), ratio(spent["flower"], here, "wall")]
    cells += [
        f"{1000 * (median(spent['flower'], 'wall') - here['wall']):.0f} ms",
        ratio(spent["workers"], here, "wall"),
    ]
    return [size, *cells]


def alternate(study: Study, cohort: Cohort, exchanges: Mapping[str, ClientExchange]) -> dict[str, list[Spent]]:
    """Run rounds of all exchanges in turn, each from the state the last one of its kind left."""
    federation = Federation(exchanges["here"].registered, study.seed, None, cohort.public)
    states = {name: initial_state(build_model(study), study.algorithm) for name in exchanges}
    spent: dict[str, list[Spent]] = {name: [] for name in exchanges}
    for number in range(NUM_ROUNDS):
        for name, exchange in exchanges.items():
            cpu, wall = time.process_time(), time.perf_counter()
            result = run_round(states[name], exchange, study.algorithm, federation, RoundSettings(min_clients=3))
            if number:
                spent[name].append(Spent(time.process_time() - cpu, time.perf_counter() - wall))
            states[name] = result.state
    weights = [[value for _, value in sorted(state.params.items())] for state in states.values()]
    for others in weights[1:]:
        if not all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True)):
            sys.exit("the exchanges gave different weights: nothing here can be compared")
    return spent


@contextmanager
def over_flower(study: Study, clients: list[Client], place: Path) -> Iterator[RemoteExchange]:
    """Open a server and a site per client on loopback."""
    keys = {client.id: ec.generate_private_key(ec.SECP384R1()) for client in clients}
    files = write_trial(place / "certificates", "127.0.0.1")
    public = {site: public_bytes(key.public_key()) for site, key in keys.items()}
    server = NetworkServer("127.0.0.1", 0, files, public, place / "server.log")
    server.start()
    ca, address = files.ca.read_bytes(), f"127.0.0.1:{server.port}"
    sites = {client.id: NetworkSite(address, ca, keys[client.id], place / "site.log") for client in clients}
    threads = [
        threading.Thread(target=sites[client.id].serve, args=(handler(study, client, place), ignore), kwargs=PATIENCE)
        for client in clients
    ]
    for thread in threads:
        thread.start()
    while server.online() != set(sites):
        time.sleep(0.1)
    registered = {client.id: client.num_examples for client in clients}
    conduct = Conduct(WAIT, WAIT, before_round=ignore, read_scores=lambda scores, site: {}, report=ignore)
    try:
        yield RemoteExchange(server, registered, {}, conduct)
    finally:
        for site in sites.values():
            site.stop()
        for thread in threads:
            thread.join()
        server.stop()


PATIENCE = {"patience_seconds": WAIT}


def handler(study: Study, client: Client, place: Path) -> Any:
    """Return the answer of a site to a message, without policy and log."""
    memory = DiskMemory(place / "memory")
    trainer = Trainer(build_model(study), study.algorithm, study.client, study.seed, memory)

    def answer(message: Message) -> Message:
        answered: Update | Failure = trainer.train(client, broadcast_of(message.payload))
        if isinstance(answered, Failure):
            return Message("failure", {"phase": answered.phase, "reason": answered.reason}, b"")
        return Message("update", {}, update_bytes(answered))

    return answer


def ignore(*args: object) -> None:
    """Do nothing."""


def median(spent: list[Spent], kind: str) -> float:
    """Return the median seconds."""
    return statistics.median(getattr(one, kind) for one in spent)


def ratio(spent: list[Spent], here: Mapping[str, float], kind: str) -> str:
    """Return the ratio of medians as text."""
    return f"{median(spent, kind) / here[kind]:.2f}"


def page(rows: list[list[str]]) -> str:
    """Return the page."""
    head = [
        "model",
        "parameters",
        "local epochs",
        "a round here",
        "Flower, CPU",
        "Flower, wall",
        "Flower adds",
        "2 workers, wall",
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["--:"] * (len(head) - 1)], *rows)]
    return HEAD + "\n".join(lines) + "\n" + TAIL + f"\n{measured_at()}\n"


HEAD = """# The cost of a network

The table has ratios of medians to the same round in one process, with all exchanges in turn on one machine of two
cores: `python docs/overhead.py`. Three sites have 140 training examples each. Every exchange ends with the same
weights, bit for bit, or the script stops. Over Flower and in workers clients train at the same time, and in one
process in turn. So wall time can be below 1. CPU time is the price. It counts both sides: TLS, Flower's objects,
packing, hashing.

"""
TAIL = """
Flower adds time per message and per byte, so it matters if local training is short. An idle site asks for messages
once a second, and most of a short round is this wait.
"""

if __name__ == "__main__":
    main()
