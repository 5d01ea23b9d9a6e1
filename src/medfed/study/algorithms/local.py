"""Local steps other than plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from medfed.study.algorithms.base import SLOTS, Composition, FedAvg, Local, Mean, Server, Weighting, refusal
from medfed.study.federation import ClientSettings


class FedProx(Local):
    """Local loss + (μ/2)‖y − x‖² (Li et al. 2020). With μ = 0 it is FedAvg, bit for bit."""

    name: ClassVar[str] = "fedprox"
    implementation: ClassVar[str] = "medfed.algorithms.proximal:FedProx"
    mu: float = Field(default=1e-4, ge=0)  # strength of the pull
    weighting: Weighting = "examples"  # what a client counts in the mean; in the FedKIM paper all count alike

    @property
    def pull(self) -> float:
        """μ."""
        return self.mu

    def default_server(self) -> Server:
        """Return the mean."""
        return Mean(weighting=self.weighting)

    def check_parts(self, parts: Composition) -> None:
        """Refuse a weighting of the mean next to a server's step that does not take it."""
        if self.weighting != Mean().weighting and not self.default_server().same(parts.server):
            what = f"fedprox counts {self.weighting} in the mean, and the server's step {parts.server.name} does not"
            raise refusal(what, "leave weighting out of local; the mean's own is server.weighting")


class Moon(Local):
    """Local loss + μ·contrast (Li et al. 2021). With μ = 0 it is FedAvg, bit for bit."""

    name: ClassVar[str] = "moon"
    implementation: ClassVar[str] = "medfed.algorithms.moon:Moon"
    no_steps: ClassVar[str] = "its contrast is neither a gradient of the client's loss nor linear in y − x"
    mu: float = Field(default=1.0, ge=0)  # μ, weight of the contrast
    temperature: float = Field(default=0.5, gt=0)


class Scaffold(Local):
    """g ← g − c_i + c, with c_i by option I or II (Karimireddy et al. 2020)."""

    name: ClassVar[str] = "scaffold"
    implementation: ClassVar[str] = "medfed.algorithms.scaffold:Scaffold"
    own_server: ClassVar[str] = "its proof moves x by η_g times the same mean of clients that moves c"
    option: Literal["I", "II"] = "II"  # how a client renews c_i
    eta_g: float = Field(default=1.0, gt=0)  # the server's learning rate η_g
    weighting: Weighting = "clients"  # what a client counts in x and c
    control: float = Field(default=1.0, ge=0)  # strength of the correction; 1 is SCAFFOLD

    def default_server(self) -> Server:
        """Return x + η_g·mean(y_i − x)."""
        return Mean(eta=self.eta_g, weighting=self.weighting)

    def check_client(self, settings: ClientSettings, parts: Composition) -> None:
        """Refuse option II where the local change is not −η times a sum of gradients."""
        plain = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "max_grad_norm": None}
        given = {name: getattr(settings, name) for name in plain}
        off = ", ".join(f"{name}={value!r}" for name, value in given.items() if value != plain[name])
        if self.option == "II" and off:
            what = (
                f"SCAFFOLD's option II reads the gradient off (x − y)/(τη), which holds for plain SGD, not with {off}"
            )
            hint = 'set algorithm.option = "I" (the gradient at x: one more pass a round), or train by plain SGD'
            raise refusal(what, hint, where="client")


class Ditto(Local):
    """A second model at every client: v_i ← v_i − η(∇F_i(v_i) + λ(v_i − x)) is deployed (Li et al. 2021).

    The global model does not see λ. With λ = 0 a client learns alone.
    """

    name: ClassVar[str] = "ditto"
    implementation: ClassVar[str] = "medfed.algorithms.proximal:Ditto"
    has_personal: ClassVar[bool] = True
    lam: float = Field(default=1.0, ge=0)  # λ, the strength of the pull

    @property
    def pull(self) -> float:
        """None in the steps of the shared model."""
        return 0.0


class PFedMe(Local):
    """θ_i ≈ argmin F_i(θ) + (λ/2)‖θ − w_i‖² is deployed; x ← (1 − β)x + β·mean of w_i (T. Dinh et al. 2020).

    With K = 1 and λ·inner_lr = 1 the gradient λ(w − θ) is that of F_i; with β = 1 and weights by examples that is
    FedAvg up to rounding. For other K no setting is.
    """

    name: ClassVar[str] = "pfedme"
    implementation: ClassVar[str] = "medfed.algorithms.proximal:PFedMe"
    own_server: ClassVar[str] = "its proof is of the step (1 − β)x + β·mean, on envelopes and not on losses"
    has_personal: ClassVar[bool] = True
    lam: float = Field(default=15.0, gt=0)  # λ
    K: int = Field(default=5, gt=0)  # gradient steps towards θ
    inner_lr: float = Field(default=0.01, gt=0)  # their learning rate ("personal learning rate")
    beta: float = Field(default=1.0, gt=0)  # β, the server's step towards the mean; the paper takes 1 or more
    weighting: Weighting = "clients"  # what a client counts in the mean; in the paper all count alike

    def default_server(self) -> Server:
        """Return (1 − β)x + β·mean of w_i."""
        return Mean(eta=self.beta, weighting=self.weighting)


def plain_mean(value: object) -> object:
    """Return a study's ``algorithm`` with the plain mean of FedKIM's f_avg, where it is FedAvg or FedProx by name.

    A weighting that it gives stays as given, and so do other algorithms.
    """
    if isinstance(value, FedAvg | FedProx):
        return value if "weighting" in value.model_fields_set else value.model_copy(update={"weighting": "clients"})
    fields = {"name": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping) or fields.keys() & set(SLOTS):
        return value
    return {"weighting": "clients", **fields} if fields.get("name") in (FedAvg.name, FedProx.name) else value
