"""CreamFL, a whole algorithm: representations travel in place of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from medfed.core.registry import implementation
from medfed.study.algorithms.base import AlgorithmSettings

if TYPE_CHECKING:
    from medfed.federated.algorithm import Algorithm


class CreamFL(AlgorithmSettings):
    """Contrastive representation ensemble and aggregation (Yu et al. 2023). No weight travels, so nothing is FedAvg.

    With γ = 0 the clients learn alone; with ``kd_weight`` = 0 the server learns from public labels alone.
    """

    name: ClassVar[str] = "creamfl"
    uses_public: ClassVar[bool] = True
    gamma: float = Field(default=0.5, ge=0)  # γ, weight of both contrasts at the client
    temperature: float = Field(default=0.5, gt=0)  # τ of both contrasts
    kd_weight: float = Field(default=0.3, ge=0)  # weight of the distillation ‖f(x) − aggregate‖²
    server_lr: float = Field(default=2e-4, gt=0)  # of the server's Adam, whose moments start afresh every round
    server_epochs: int = Field(default=1, gt=0)  # over the public examples, of labels and of distillation each
    server_batch_size: int = Field(default=32, gt=0)  # examples per server step

    def build(self) -> Algorithm:
        """Return the algorithm."""
        algorithm: Algorithm = implementation("medfed.algorithms.creamfl:CreamFL")(**dict(self))
        return algorithm
