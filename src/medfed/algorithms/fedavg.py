"""FedAvg: the mean of the local models, weighted by examples (McMahan et al. 2017, Alg. 1)."""

from __future__ import annotations

from typing import ClassVar

from medfed.federated.algorithm import Algorithm


class FedAvg(Algorithm):
    """x ← Σ p_i y_i. Every default of :class:`Algorithm`."""

    name: ClassVar[str] = "fedavg"


ALGORITHMS: tuple[type[Algorithm], ...] = (FedAvg,)
