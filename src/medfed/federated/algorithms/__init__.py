"""The algorithm registry: one line per file; each has a tuple ``ALGORITHMS``."""

from medfed.federated.algorithms.base import Algorithm
from medfed.registry import collect

ALGORITHMS: dict[str, type[Algorithm]] = collect(
    (
        "medfed.federated.algorithms.fedavg",
        "medfed.federated.algorithms.fedprox",
        "medfed.federated.algorithms.scaffold",
        "medfed.federated.algorithms.fednova",
        "medfed.federated.algorithms.moon",
        "medfed.federated.algorithms.creamfl",
        "medfed.federated.algorithms.adaptive",
        "medfed.federated.algorithms.fedper",
        "medfed.federated.algorithms.fedbn",
        "medfed.federated.algorithms.ditto",
        "medfed.federated.algorithms.pfedme",
    ),
    "ALGORITHMS",
)
