"""FedPer: shared base layers, personal layers that never leave the client (Arivazhagan et al. 2019, Alg. 1)."""

from __future__ import annotations

from typing import ClassVar

from medfed.algorithms.keeping import KeepsTensors
from medfed.core.errors import StudyError
from medfed.core.types import Params
from medfed.federated.algorithm import Algorithm


class FedPer(KeepsTensors):
    """FedAvg of the base layers; the personal ones stay at home. Without any prefix it is FedAvg, bit for bit.

    Attributes:
        private_prefixes: beginnings of the names of the personal tensors; by default every task's head.
    """

    name: ClassVar[str] = "fedper"
    private_prefixes: tuple[str, ...] = ("heads.",)

    def private(self, params: Params, buffers: Params) -> frozenset[str]:
        """Return the names that begin with one of the prefixes.

        Raises:
            StudyError: a prefix fits no tensor.
        """
        names = (*params, *buffers)
        for prefix in self.private_prefixes:
            if not any(name.startswith(prefix) for name in names):
                raise StudyError(
                    f"no tensor of the model begins with {prefix!r}",
                    where="algorithm.private_prefixes",
                    hint=f"they begin with {', '.join(sorted({name.partition('.')[0] + '.' for name in names}))}",
                )
        return frozenset(name for name in names if name.startswith(self.private_prefixes))


ALGORITHMS: tuple[type[Algorithm], ...] = (FedPer,)
