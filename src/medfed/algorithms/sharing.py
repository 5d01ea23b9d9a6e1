"""Tensors that never leave the client.

FedPer shares the base layers; the personal layers stay (Arivazhagan et al. 2019, Alg. 1). FedBN keeps batch
normalisation at the client and averages everything else (Li et al. 2021, Alg. 1).
"""

from __future__ import annotations

from medfed.algorithms.parts import SharingPart
from medfed.core.errors import StudyError
from medfed.core.types import Params
from medfed.study import algorithms as settings


class FedPer(settings.FedPer, SharingPart):
    """The base layers travel; the personal ones stay at home."""

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names that begin with one of the prefixes. Raises StudyError if a prefix fits no tensor."""
        names = (*params, *buffers)
        for prefix in self.private_prefixes:
            if not any(name.startswith(prefix) for name in names):
                hint = f"they begin with {', '.join(sorted({name.partition('.')[0] + '.' for name in names}))}"
                what = f"no tensor of the model begins with {prefix!r}"
                raise StudyError(what, where="algorithm.private_prefixes", hint=hint)
        return frozenset(name for name in names if name.startswith(self.private_prefixes))


class FedBN(settings.FedBN, SharingPart):
    """Everything travels but batch normalisation: its scale, its shift and its statistics."""

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the tensors of layers with running statistics; raise StudyError if the model has no such layer."""
        layers = {name.rpartition(".")[0] for name in buffers if name.rpartition(".")[2] == "running_mean"}
        if not layers:
            what = "the model has no batch normalisation, so FedBN would be FedAvg under another name"
            raise StudyError(what, where="algorithm", hint="choose encoders with batch normalisation, or fedavg")
        return frozenset(name for name in (*params, *buffers) if name.rpartition(".")[0] in layers)
