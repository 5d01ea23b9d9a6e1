"""What a federation's run says and weighs when a site is missing, and the same run in this process, for comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from medfed.runs.folder import RunDir

from federation_trial import Trial
from medfed.core.progress import Reporter
from medfed.core.types import Broadcast
from medfed.data.cohort import Cohort
from medfed.federated.exchange import Answer, ClientExchange
from medfed.runs.pipeline import Party, Places, here, run_study
from medfed.study.study import Study


class Deaf:
    """An exchange of which one client is not heard in some rounds; it may not even be asked."""

    def __init__(self, inner: ClientExchange, client: str, rounds: set[int], *, asked: bool) -> None:
        self._inner, self._client, self._rounds, self._asked = inner, client, rounds, asked

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def __call__(self, round: int, broadcasts: Mapping[str, Broadcast]) -> Iterator[Answer]:
        deaf = {self._client} if round in self._rounds else set()
        asked = {name: sent for name, sent in broadcasts.items() if self._asked or name not in deaf}
        yield from ((name, answer) for name, answer in self._inner(round, asked) if name not in deaf)


def weights_without(trial: Trial, client: str, rounds: set[int], *, asked: bool) -> str:
    """Return the final weights' sha256 of a run in this process in which ``client`` is not heard in ``rounds``."""
    local = here()

    def connect(study: Study, cohort: Cohort, run: RunDir) -> ClientExchange:
        return Deaf(local.connect(study, cohort, run), client, rounds, asked=asked)  # type: ignore[return-value]

    places = Places(trial.root / "here", trial.root / "cache", trial.data)
    party = Party(local.sources, local.cohort, connect)
    return weights(RunDir(run_study(trial.study, places, Reporter.silent(), party=party)))


def weights(run: RunDir) -> str:
    newest = sorted((run.root / "checkpoints").glob("[0-9]*"))[-1]
    return hashlib.sha256((newest / "state.safetensors").read_bytes()).hexdigest()


def failures(trial: Trial) -> dict[int, list[tuple[str, str, str]]]:
    """Return round → (site, phase, reason) as ``rounds.jsonl`` has them."""
    return {
        record["round"]: [(found["client"], found["phase"], found["reason"]) for found in record["failures"]]
        for record in trial.run.read_records("rounds.jsonl")
    }


def sites_and_phases(told: Mapping[int, list[tuple[str, str, str]]]) -> dict[int, list[tuple[str, str]]]:
    return {number: [(site, phase) for site, phase, _ in found] for number, found in told.items()}
