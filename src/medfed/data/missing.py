"""Missing modalities, made on purpose: a share of clients, or of examples, lacks one.

The missing ones are drawn from (seed, dataset, client or example) and taken out of the decoded data. So training and
test see the same hospital: one without an ECG has none at test time either. The server's public examples stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from medfed.core.rng import numpy_rng
from medfed.datasets.decoded import Decoded
from medfed.study.data import MissingSettings


def take_away(data: Decoded, settings: MissingSettings, clients: Mapping[str, str], seed: int) -> Decoded:
    """Return ``data`` without the missing modalities.

    Args:
        data: a dataset.
        settings: share and kind of what is missing.
        clients: patient → client, private and test patients alike; others keep everything.
        seed: the run's seed.
    """
    named = [name for name in data.samples if not settings.modalities or name in settings.modalities]
    if settings.share == 0 or not named or len(data.samples) < 2:
        return data
    present = {name: flags.copy() for name, flags in data.present.items()}
    chosen = _chosen_clients(sorted(set(clients.values())), settings, seed, data.name)
    for row, (example, patient) in enumerate(data.index.select("example", "patient").iter_rows()):
        client = clients.get(patient)
        if client is None or (settings.by == "client" and client not in chosen):
            continue
        rng = numpy_rng(seed, "missing", data.name, settings.by, client if settings.by == "client" else str(example))
        if settings.by == "example" and rng.random() >= settings.share:
            continue
        name = named[int(rng.integers(len(named)))]
        present[name][row] &= not any(flags[row] for other, flags in present.items() if other != name)
    samples = {name: _blanked(values, present[name]) for name, values in data.samples.items()}
    return replace(data, samples=samples, present=present)


def _chosen_clients(clients: list[str], settings: MissingSettings, seed: int, dataset: str) -> set[str]:
    """Return the nearest whole number of clients to the share, drawn at random."""
    count = int(settings.share * len(clients) + 0.5)
    order = numpy_rng(seed, "missing", dataset, "clients").permutation(len(clients))
    return {clients[number] for number in order[:count]}


def _blanked(values: np.ndarray, present: Bool[np.ndarray, " example"]) -> np.ndarray:
    blank = values.copy()
    blank[~present] = 0
    return blank
