"""SCAFFOLD: control variates cancel the drift of local training (Karimireddy et al. 2020, Alg. 1).

Every client keeps c_i, the gradient it expects of its own data; the server keeps their mean c. A local step uses
g − c_i + c, which points where all clients together want to go. With η, τ a client's learning rate and steps:

=========  ==============================================================  =====================================
option     c_i⁺                                                            asks of the client
=========  ==============================================================  =====================================
``"I"``    gradient of its whole loss at x: one more pass over its data    nothing
``"II"``   c_i − c + (x − y_i)/(τη): no more work, the paper's own choice  plain SGD, else x − y_i is no gradient
=========  ==============================================================  =====================================

x ← x + η_g·mean(y_i − x) and c ← c + (|S|/N)·mean(c_i⁺ − c_i) = c + Σ(c_i⁺ − c_i)/N.

What the paper leaves open: clients that lack a modality or a task. For a tensor, S and N hold the clients with data for
its component, so that c stays the mean of their c_i exactly, also when clients are sampled. Who has data is known only
once a client has answered: until then every registered client counts (with the c_i = 0 it starts from), and c is
rescaled when one turns out to have none. A client whose update is lost after training has moved its c_i on all the
same; c misses that change until the run ends.

With ``weighting="clients"``, the paper's, the objective is the plain mean of the clients' losses. With
``"examples"`` both x and c weigh clients by examples, as FedAvg does; this and ``control = 0`` is FedAvg, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medfed.core.errors import StudyError
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Broadcast, Params, Update, component
from medfed.federated.aggregation import Average, Weighting, moved, weight
from medfed.federated.algorithm import Aggregate, Algorithm, Federation
from medfed.federated.gate import delta_dtype
from medfed.federated.local import LocalStep, Trained, Upload
from medfed.federated.state import FederatedState, Weights, join, split
from medfed.study.federation import ClientSettings

GROUPS = ("control", "weight")


class Scaffold(Algorithm):
    """g ← g − c_i + c, with c_i by option I or II.

    Attributes:
        option: how a client renews c_i.
        eta_g: the server's learning rate η_g.
        weighting: what a client counts in x and c.
        control: strength of the correction; 1 is SCAFFOLD.
    """

    name: ClassVar[str] = "scaffold"
    option: Literal["I", "II"] = "II"
    eta_g: float = Field(default=1.0, gt=0)
    weighting: Weighting = "clients"
    control: float = Field(default=1.0, ge=0)

    def check(self, settings: ClientSettings) -> None:
        """Refuse option II where the local change is not −η times a sum of gradients.

        Raises:
            StudyError: naming the setting.
        """
        found = {
            f"optimizer={settings.optimizer!r}": settings.optimizer != "sgd",
            f"momentum={settings.momentum}": settings.momentum != 0,
            f"weight_decay={settings.weight_decay}": settings.weight_decay != 0,
            f"max_grad_norm={settings.max_grad_norm}": settings.max_grad_norm is not None,
        }
        wrong = [setting for setting, is_wrong in found.items() if is_wrong]
        if self.option == "II" and wrong:
            raise StudyError(
                f"SCAFFOLD's option II reads the gradient off (x − y)/(τη), which holds for plain SGD, not with "
                f"{', '.join(wrong)}",
                where="client",
                hint='set algorithm.option = "I" (the gradient at x: one more pass a round), or train by plain SGD',
            )

    def init_server(self, params: Params) -> Params:
        """Return c = 0."""
        return join({"control": _zeros(params)})

    def init_client(self, initial: Weights) -> Params:
        """Return c_i = 0."""
        return _zeros(initial.params)

    def broadcast(self, state: FederatedState, base: str) -> Broadcast:
        """Send x and c."""
        return Broadcast(
            state.round + 1, base, state.params, state.buffers, split(state.server_state, GROUPS)["control"]
        )

    def correct(self, gradients: Params, step: LocalStep, broadcast: Broadcast, client_state: Params) -> Params | None:
        """Return g − c_i + c."""
        if self.control == 0:
            return None
        return {
            name: value + self.control * (broadcast.state[name] - client_state[name]).to(value.dtype)
            for name, value in gradients.items()
        }

    def upload(self, trained: Trained, broadcast: Broadcast, client_state: Params) -> Upload:
        """Send y_i − x and c_i⁺ − c_i; keep c_i⁺. A tensor the client has no data for keeps its c_i."""
        new = self._gradient(trained, broadcast) if self.option == "I" else _read_off(trained, broadcast, client_state)
        kept = {
            name: new[name].to(own.dtype) if trained.examples[component(name)] else own
            for name, own in client_state.items()
        }
        change = {name: kept[name] - own for name, own in client_state.items()}
        return Upload(trained.delta, trained.shared_buffers(broadcast), change, kept)

    def upload_like(self, state: FederatedState, federation: Federation) -> Params:
        """Return tensors like c."""
        return split(state.server_state, GROUPS)["control"]

    def aggregate(self, state: FederatedState, updates: Iterator[Update], federation: Federation) -> Aggregate:
        """Return x + η_g·mean(y_i − x) and the new c."""
        deltas, buffers, controls = (Average(self.weighting) for _ in range(3))
        old = split(state.server_state, GROUPS)
        known = dict(old["weight"])
        parts = sorted({component(name) for name in state.params})
        for update in updates:
            deltas.add(update.delta, update)
            buffers.add(update.buffers, update)
            controls.add(update.state, update)
            shares = [weight(update, part, self.weighting) for part in parts]
            known[update.client] = torch.tensor(shares, dtype=torch.float64)
            del update  # before the next one comes: memory holds one
        before, after = (self._total(weights, parts, federation) for weights in (old["weight"], known))
        common = _mean(old["control"], controls.sums(), before, after)
        params = moved(state.params, {name: self.eta_g * mean for name, mean in deltas.means().items()})
        return Aggregate(params, buffers.replacing(state.buffers), join({"control": common, "weight": known}))

    def _gradient(self, trained: Trained, broadcast: Broadcast) -> dict[str, Tensor]:
        """Option I; dropout and batch normalisation work as in training, from a seed of their own."""
        with torch_seeded(trained.site.seed, trained.site.client, broadcast.round, "control"):
            found = trained.gradient(broadcast.params)
        return {name: value.cpu() for name, value in found.items()}

    def _total(self, known: Params, parts: list[str], federation: Federation) -> dict[str, float]:
        """Return the weight of all registered clients by component; who never answered counts in full."""
        size = torch.zeros(len(parts), dtype=torch.float64)
        for client, examples in federation.registered.items():
            assumed = examples if self.weighting == "examples" else 1
            size += known.get(client, torch.full_like(size, assumed))
        return dict(zip(parts, size.tolist(), strict=True))


def _zeros(params: Params) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value, dtype=delta_dtype(value.dtype)) for name, value in params.items()}


def _read_off(trained: Trained, broadcast: Broadcast, controls: Params) -> dict[str, Tensor]:
    """Option II: c_i − c + (x − y_i)/(τη)."""
    scale = trained.num_steps * trained.site.settings.lr
    return {name: own - broadcast.state[name] - trained.delta[name] / scale for name, own in controls.items()}


def _mean(
    common: Params, changes: Params, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, Tensor]:
    """Return (c·W + Σ w_i(c_i⁺ − c_i))/W⁺: with a constant weight W = W⁺ = N the paper's rule."""
    result = dict(common)
    for name, value in common.items():
        part = component(name)
        if after[part]:
            total = value.to(torch.float64) * before[part] + changes.get(name, 0.0)
            result[name] = (total / after[part]).to(value.dtype)
    return result


ALGORITHMS: tuple[type[Algorithm], ...] = (Scaffold,)
