"""Settings of the federated algorithms: sharing × the local step × the server's step. Free of torch.

A study names an algorithm in one of three forms::

    algorithm = "fedavg"
    algorithm = { name = "fedprox", mu = 1e-4 }
    algorithm = { sharing = "fedbn", local = "fedprox", server = { name = "fedadam", eta = 0.1 } }

A part is an algorithm by itself: the two slots it leaves open are FedAvg's (all tensors travel, plain steps, the mean).
Two parts combine where the formulas of both stay true. Each part refuses what breaks its own
(:meth:`Part.check_parts`) or trains in a way its formula is wrong for (:meth:`Part.check_client`):

===========  =============  ===================================  ==================================================
slot         part           combines with                        refuses, and why
===========  =============  ===================================  ==================================================
``sharing``  ``all``        everything
..           ``fedper``     all but Ditto and pFedMe             MOON if an encoder is private: its contrast is 0
..           ``fedbn``      all but Ditto and pFedMe
``local``    ``plain``      everything
..           ``fedprox``    everything                           (the pull acts on what travels)
..           ``moon``       all servers but FedNova              FedNova: a contrast has no effective steps
..           ``scaffold``   every sharing                        other servers: c and x move by the same mean
..           ``ditto``      every server                         FedPer, FedBN: two personal models would compete
..           ``pfedme``     its own server                       FedPer, FedBN; other servers: its β is the step
``server``   ``mean``       everything
..           ``fednova``    plain, FedProx, Ditto                local steps without effective steps
..           adaptive four  all but SCAFFOLD and pFedMe
===========  =============  ===================================  ==================================================

CreamFL is a whole algorithm of its own: representations travel, so there is no change of weights to combine.
"""

from __future__ import annotations

from medfed.study.algorithms.base import (
    SLOTS,
    AlgorithmSettings,
    All,
    Composition,
    FedAvg,
    Local,
    Mean,
    Part,
    Plain,
    Preset,
    Server,
    Sharing,
    Weighting,
    composition_of,
)
from medfed.study.algorithms.creamfl import CreamFL
from medfed.study.algorithms.local import Ditto, FedProx, Moon, PFedMe, Scaffold, plain_mean
from medfed.study.algorithms.server import Adaptive, FedAdagrad, FedAdam, FedAMS, FedNova, FedYogi, Reddi
from medfed.study.algorithms.sharing import FedBN, FedPer

__all__ = [
    "ALGORITHMS",
    "SLOTS",
    "Adaptive",
    "AlgorithmSettings",
    "All",
    "Composition",
    "CreamFL",
    "Ditto",
    "FedAMS",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedBN",
    "FedNova",
    "FedPer",
    "FedProx",
    "FedYogi",
    "Local",
    "Mean",
    "Moon",
    "PFedMe",
    "Part",
    "Plain",
    "Preset",
    "Reddi",
    "Scaffold",
    "Server",
    "Sharing",
    "Weighting",
    "composition_of",
    "plain_mean",
]

ALGORITHMS: tuple[type[AlgorithmSettings], ...] = (
    *(FedAvg, FedProx, Scaffold, FedNova, Moon, CreamFL),
    *(FedAdagrad, FedAdam, FedYogi, FedAMS),
    *(FedPer, FedBN, Ditto, PFedMe),
)
