"""The algorithm registry: one line per file; each has a tuple ``ALGORITHMS``."""

from __future__ import annotations

from medfed.core.registry import collect
from medfed.federated.algorithm import Algorithm

ALGORITHMS: dict[str, type[Algorithm]] = collect(
    (
        "medfed.algorithms.fedavg",
        "medfed.algorithms.fedprox",
        "medfed.algorithms.scaffold",
        "medfed.algorithms.fednova",
        "medfed.algorithms.moon",
        "medfed.algorithms.creamfl",
        "medfed.algorithms.adaptive",
        "medfed.algorithms.fedper",
        "medfed.algorithms.fedbn",
        "medfed.algorithms.ditto",
        "medfed.algorithms.pfedme",
    ),
    "ALGORITHMS",
)
