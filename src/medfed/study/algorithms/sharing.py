"""Sharing that keeps tensors at the clients."""

from __future__ import annotations

from typing import ClassVar

from medfed.study.algorithms.base import Composition, Sharing, refusal
from medfed.study.algorithms.local import Moon


class FedPer(Sharing):
    """The base layers travel; the personal ones stay (Arivazhagan et al. 2019). Without any prefix it is FedAvg."""

    name: ClassVar[str] = "fedper"
    implementation: ClassVar[str] = "medfed.algorithms.sharing:FedPer"
    private_prefixes: tuple[str, ...] = ("heads.",)  # of the names of the personal tensors: every task's head

    def check_parts(self, parts: Composition) -> None:
        """Refuse MOON with a private encoder."""
        encoders = [prefix for prefix in self.private_prefixes if prefix[:9] == "encoders."[: len(prefix)]]
        if isinstance(parts.local, Moon) and encoders:
            what = "MOON contrasts the global encoder with the client's last one; with "
            what += f"{encoders[0]!r} private both are the client's, and the contrast is 0"
            raise refusal(what, "keep the encoders shared, or train without MOON")


class FedBN(Sharing):
    """Everything travels but batch normalisation: its scale, its shift and its statistics (Li et al. 2021).

    It has no null setting: a model without batch normalisation is refused.
    """

    name: ClassVar[str] = "fedbn"
    implementation: ClassVar[str] = "medfed.algorithms.sharing:FedBN"
