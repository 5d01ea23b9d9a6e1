"""FedBN: batch normalisation stays at the client, everything else is averaged (Li et al. 2021, Alg. 1)."""

from __future__ import annotations

from medfed.algorithms.parts import SharingPart
from medfed.core.errors import StudyError
from medfed.core.types import Params
from medfed.study import algorithms as settings

STATISTIC = "running_mean"


class FedBN(settings.FedBN, SharingPart):
    """Everything travels but batch normalisation: its scale, its shift and its statistics."""

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the tensors of every layer that keeps running statistics.

        Raises:
            StudyError: the model has no such layer.
        """
        layers = {name.rpartition(".")[0] for name in buffers if name.rpartition(".")[2] == STATISTIC}
        if not layers:
            raise StudyError(
                "the model has no batch normalisation, so FedBN would be FedAvg under another name",
                where="algorithm",
                hint="choose encoders with batch normalisation, or fedavg",
            )
        return frozenset(name for name in (*params, *buffers) if name.rpartition(".")[0] in layers)
