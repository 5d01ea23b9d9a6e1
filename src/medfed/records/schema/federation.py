"""Files of a federation: who holds what, the rounds, their timings and how well each went."""

from __future__ import annotations

from medfed.records.schema.base import File, Json, Line, Number, Record

Ids = dict[str, dict[str, tuple[str, ...]]]
"""Client or server split → dataset → example ids."""
Counts = dict[str, dict[str, dict[str, int]]]
"""Client → task → class → examples."""


class PartitionFile(File, path="partition.json"):
    """``partition.json``: who holds what.

    Attributes:
        scheme: how the examples were divided.
        seed: seed of the division.
        hash: fingerprint of ``clients``.
        clients: the clients' training examples.
        server: the server's public, development and test examples.
        client_tests: the test examples that were dealt to the clients.
        site_tests: the sites' own test examples.
        counts: training examples by class; empty for a site that does not report classes.
        num_examples: training examples of such a site, by task.
        skipped: examples of a site that could not be decoded, by dataset.
        left_out: clients with too few examples to take part.
    """

    scheme: str = "unknown"
    seed: int | None = None
    hash: str = ""
    clients: Ids = {}
    server: Ids = {}
    client_tests: Ids = {}
    site_tests: Ids = {}
    counts: Counts = {}
    num_examples: dict[str, dict[str, int]] = {}
    skipped: dict[str, dict[str, int]] = {}
    left_out: tuple[str, ...] = ()


class ModalityMoments(Record):
    """Count, sum and sum of squares of one modality, per channel."""

    count: tuple[float, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]


class NormalisationFile(File, path="normalisation.json"):
    """``normalisation.json``: the pooled moments that every input is normalised by."""

    moments: dict[str, ModalityMoments] = {}


class ClientRound(Record):
    """One client in one round."""

    client: str
    losses: dict[str, Number] = {}
    num_examples: int = 0
    num_steps: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class FailedClient(Record):
    """A client that gave no usable answer; ``model`` names the federation where several are on record."""

    client: str
    phase: str = ""
    reason: str = ""
    model: str | None = None


class Round(Line, path="rounds.jsonl"):
    """A line of ``rounds.jsonl``.

    Attributes:
        round: from 1.
        clients: the clients that took part, by name.
        failures: those that did not, and why.
        base: fingerprint of the weights that were sent out; None where no client trains.
        upload_dtype: number format of the uploads.
        upload_error: relative error of the mean update by that format; None if no weight travels.
    """

    round: int
    clients: tuple[ClientRound, ...] = ()
    failures: tuple[FailedClient, ...] = ()
    base: str | None = None
    upload_dtype: str = "float32"
    upload_error: Number = None


class Timing(Line, path="timings.jsonl"):
    """A line of ``timings.jsonl``: how long a phase took, of one client or of the server."""

    round: int | None = None
    phase: str
    client: str | None = None
    seconds: float


class Development(Line, path="development.jsonl"):
    """A line of ``development.jsonl``: the watched metrics of one task after one round."""

    round: int
    model: str
    task: str
    values: dict[str, Number] = {}


class GreetingFile(File, path="greetings.json"):
    """``greetings.json``: what every site elsewhere reported of itself before the first round."""

    sites: dict[str, Json] = {}
