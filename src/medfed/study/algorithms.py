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

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_serializer, model_validator

from medfed.core.catalog import ALGORITHMS as CATALOG
from medfed.core.errors import MedfedError, StudyError
from medfed.core.registry import implementation, unknown
from medfed.study.federation import ClientSettings
from medfed.study.parts import PartSpec

if TYPE_CHECKING:
    from medfed.federated.algorithm import Algorithm

Weighting = Literal["examples", "clients"]
"""Whether a client counts by its examples (McMahan et al. 2017), or as one if it has any (Karimireddy et al. 2020)."""

SLOTS = ("sharing", "local", "server")


class AlgorithmSettings(PartSpec):
    """A federated algorithm in a study: a name, and hyperparameters under their paper's names."""

    uses_public: ClassVar[bool] = False
    """Whether the clients are given the server's public examples."""

    @property
    def label(self) -> str:
        """The name in reports; of a combination the names of its parts."""
        return self.name

    @property
    def part_names(self) -> tuple[str, ...]:
        """The registry names that a site's policy must allow."""
        return (self.name,)

    def check(self, settings: ClientSettings) -> None:
        """Raise :class:`StudyError` where the algorithm is wrong with these client settings."""

    @abstractmethod
    def build(self) -> Algorithm:
        """Return the algorithm with its hooks; torch is imported now."""


class Preset(AlgorithmSettings):
    """A named combination."""

    @abstractmethod
    def composition(self) -> Composition:
        """Return the parts this name stands for."""

    def check(self, settings: ClientSettings) -> None:
        """Raise :class:`StudyError` where a part is wrong with these client settings."""
        self.composition().check(settings)

    def build(self) -> Algorithm:
        """Return the composed algorithm."""
        return self.composition().build()


class Part(Preset):
    """One slot's part of a combination; the implementation subclasses the settings and adds the hooks."""

    implementation: ClassVar[str] = ""
    """``module:class`` of the hooks; empty where this class has them itself."""
    slot: ClassVar[str]

    def composition(self) -> Composition:
        """Return the combination of this part with FedAvg's others."""
        return Composition.model_validate({self.slot: self})

    def implemented(self) -> Any:
        """Return this part with its hooks."""
        kind = implementation(self.implementation) if self.implementation else type(self)
        return self if isinstance(self, kind) else kind(**dict(self))

    def check_parts(self, parts: Composition) -> None:
        """Raise :class:`StudyError` where this part's formula is wrong with the others."""

    def check_client(self, settings: ClientSettings, parts: Composition) -> None:
        """Raise :class:`StudyError` where this part's formula is wrong with these client settings."""

    def same(self, other: Part) -> bool:
        """Whether ``other`` is this part with these hyperparameters."""
        return self.name == other.name and dict(self) == dict(other)


class Sharing(Part):
    """The choice of what travels."""

    slot: ClassVar[str] = "sharing"


class Local(Part):
    """The local step."""

    slot: ClassVar[str] = "local"
    no_steps: ClassVar[str] = "it does not say what its steps add up to"
    """Why :attr:`pull` is None."""
    own_server: ClassVar[str] = ""
    """Why it combines with no other server's step than :meth:`default_server`; empty where it does."""
    has_personal: ClassVar[bool] = False
    """Whether it deploys a personal model of its own, with which private tensors would compete."""

    @property
    def pull(self) -> float | None:
        """The μ of a pull (μ/2)‖y − x‖² in steps that otherwise follow the client's gradients; None for other steps."""
        return None

    def default_server(self) -> Server:
        """Return the server's step this local step comes with."""
        return Mean()

    def check_parts(self, parts: Composition) -> None:
        """Refuse private tensors next to a personal model, and another server's step than the own one."""
        name, sharing, server = self.name, parts.sharing.name, parts.server.name
        if self.has_personal and not isinstance(parts.sharing, All):
            what = f"{name} deploys a personal model that is pulled to the whole global one; {sharing} has no "
            what += "global value of the private tensors, and deploys them itself"
            raise _refusal(what, f"choose one of {name} and {sharing}")
        if self.own_server and not self.default_server().same(parts.server):
            what = f"{name} comes with its own server's step, so it does not combine with {server}: {self.own_server}"
            raise _refusal(what, f"leave server out and set the fields of local = {name!r}")


class Server(Part):
    """The server's step."""

    slot: ClassVar[str] = "server"


def _part(kind: type[Part], value: object) -> object:
    """Build the part that ``value`` names: ``"fedprox"`` or ``{name = "fedprox", mu = 0.01}``."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    parts: list[type[AlgorithmSettings]] = [All, Plain, Mean, *CATALOG.values()]
    known = {part.name: part for part in parts if issubclass(part, kind)}
    name, fields = value.get("name"), {key: field for key, field in value.items() if key != "name"}
    if name in known:
        return known[str(name)].model_validate(fields)
    other = CATALOG.get(str(name))
    if other is None:
        raise ValueError(str(unknown(known, str(name), f"part for {kind.slot}")))
    if issubclass(other, Part):
        raise ValueError(f"{name!r} is no part for {kind.slot}\n  next step: write {other.slot} = {name!r}")
    raise ValueError(f"{name!r} is a whole algorithm, no part\n  next step: write algorithm = {name!r}")


def _refusal(what: str, hint: str, where: str = "algorithm") -> StudyError:
    return StudyError(what, where=where, hint=hint)


class All(Sharing):
    """Every tensor travels."""

    name: ClassVar[str] = "all"
    implementation: ClassVar[str] = "medfed.algorithms.parts:All"


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
            raise _refusal(what, "keep the encoders shared, or train without MOON")


class FedBN(Sharing):
    """Everything travels but batch normalisation: its scale, its shift and its statistics (Li et al. 2021).

    It has no null setting: a model without batch normalisation is refused.
    """

    name: ClassVar[str] = "fedbn"
    implementation: ClassVar[str] = "medfed.algorithms.sharing:FedBN"


class Plain(Local):
    """The client's gradients."""

    name: ClassVar[str] = "plain"
    implementation: ClassVar[str] = "medfed.algorithms.parts:Plain"

    @property
    def pull(self) -> float:
        """None at all."""
        return 0.0


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
            raise _refusal(what, "leave weighting out of local; the mean's own is server.weighting")


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
            raise _refusal(what, hint, where="client")


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


class Mean(Server):
    """x ← x + η·mean(y_i − x); with η = 1 and weights by examples FedAvg's (McMahan et al. 2017)."""

    name: ClassVar[str] = "mean"
    implementation: ClassVar[str] = "medfed.algorithms.parts:Mean"
    eta: float = Field(default=1.0, gt=0)  # the server's learning rate η
    weighting: Weighting = "examples"  # what a client counts


class FedNova(Server):
    """x ← x + τ_eff Σ p_i (y_i − x)/‖a_i‖₁ (Wang et al. 2020). With equal a_i it is the mean, up to rounding."""

    name: ClassVar[str] = "fednova"
    implementation: ClassVar[str] = "medfed.algorithms.fednova:FedNova"
    # strength of the proximal pull (μ/2)‖y − x‖²; in a combination that is local = { name = "fedprox", mu = … }
    mu: float = Field(default=0.0, ge=0)

    def composition(self) -> Composition:
        """Return FedProx's steps, if there is a pull, and the normalised mean."""
        return Composition(local=FedProx(mu=self.mu) if self.mu else Plain(), server=FedNova())

    def check_parts(self, parts: Composition) -> None:
        """Refuse local steps whose effective steps are unknown."""
        if self.mu:
            hint = f'write local = {{ name = "fedprox", mu = {self.mu} }}'
            raise _refusal("the pull is part of the local step", hint)
        if parts.local.pull is None:
            what = f"FedNova knows no effective steps for {parts.local.name}: {parts.local.no_steps}"
            raise _refusal(what, "choose local = plain, fedprox or ditto, or another server")

    def check_client(self, settings: ClientSettings, parts: Composition) -> None:
        """Refuse local training for which no a_i is known."""
        mu, what = parts.local.pull or 0.0, ""
        if settings.optimizer != "sgd":
            what, hint = f"optimizer={settings.optimizer!r}: it rescales every gradient by the gradients", "use sgd"
        elif settings.momentum and not settings.reset_optimizer:
            what, hint = "momentum that is kept across rounds", "set client.reset_optimizer = true, or momentum = 0"
        elif mu and (most := settings.max_grad_norm) is not None:
            what, hint = f"mu={mu} with max_grad_norm={most}: the pull is clipped too", "drop one of the two"
        elif not math.isfinite(mu) or mu * settings.lr >= 1:
            what, hint = f"mu={mu} with lr={settings.lr}: a step overshoots the global model", "keep mu·lr below 1"
        if what:
            raise _refusal(f"FedNova knows no effective steps for {what}", hint, where="client")


class Adaptive(Server):
    """An optimizer on the server."""

    eta: float = Field(default=1e-2, gt=0)  # the server's learning rate η
    beta_1: float = Field(default=0.9, ge=0, lt=1)  # decay β1 of the first moment


class Reddi(Adaptive):
    """x ← x + η m/(√v + τ) (Reddi et al. 2020, Alg. 2)."""

    tau: float = Field(default=1e-3, gt=0)  # adaptivity τ: changes well below it pass unscaled


class FedAdagrad(Reddi):
    """v ← v + Δ². The paper runs it without momentum."""

    name: ClassVar[str] = "fedadagrad"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAdagrad"
    beta_1: float = Field(default=0.0, ge=0, lt=1)


class FedAdam(Reddi):
    """v ← β2 v + (1 − β2)Δ²."""

    name: ClassVar[str] = "fedadam"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAdam"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # decay β2 of the second moment


class FedYogi(Reddi):
    """v ← v − (1 − β2)Δ² sign(v − Δ²)."""

    name: ClassVar[str] = "fedyogi"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedYogi"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # 1 − β2 is the share of Δ² by which v moves


class FedAMS(Adaptive):
    """v̂ ← max(v̂, v, ε), x ← x + η m/√v̂ (Wang, Lin and Chen 2022): the paper's option 1, max stabilisation."""

    name: ClassVar[str] = "fedams"
    implementation: ClassVar[str] = "medfed.algorithms.adaptive:FedAMS"
    beta_2: float = Field(default=0.99, ge=0, lt=1)  # decay β2 of the second moment
    epsilon: float = Field(default=1e-3, gt=0)  # least value ε of v̂


class Composition(AlgorithmSettings):
    """Sharing × the local step × the server's step; raises StudyError if a part is wrong with the others."""

    name: ClassVar[str] = "composed"
    sharing: Annotated[SerializeAsAny[Sharing], BeforeValidator(partial(_part, Sharing))] = All()  # what travels
    local: Annotated[SerializeAsAny[Local], BeforeValidator(partial(_part, Local))] = Plain()  # the local step
    server: Annotated[SerializeAsAny[Server], BeforeValidator(partial(_part, Server))] = Field(
        default_factory=lambda parts: parts["local"].default_server()  # the one the local step comes with
    )

    @model_validator(mode="after")
    def _parts_combine(self) -> Composition:
        for part in self.parts:
            part.check_parts(self)
        return self

    @field_serializer(*SLOTS)
    def _named(self, part: Part) -> dict[str, Any]:
        return {"name": part.name, **part.model_dump(mode="json")}

    @property
    def parts(self) -> tuple[Sharing, Local, Server]:
        """The three parts."""
        return self.sharing, self.local, self.server

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the parts that are not FedAvg's."""
        return tuple(part.name for part in self.parts if not isinstance(part, All | Plain | Mean)) or (FedAvg.name,)

    @property
    def label(self) -> str:
        """The names of the parts that are not FedAvg's, joined by ``+``."""
        nulls = (All(), Plain(), self.local.default_server())
        names = [part.name for part, null in zip(self.parts, nulls, strict=True) if not part.same(null)]
        return "+".join(names) or FedAvg.name

    def check(self, settings: ClientSettings) -> None:
        """Raise :class:`StudyError` where a part is wrong with these client settings."""
        for part in self.parts:
            part.check_client(settings, self)

    def build(self) -> Algorithm:
        """Return the composed algorithm."""
        parts = {slot: part.implemented() for slot, part in zip(SLOTS, self.parts, strict=True)}
        algorithm: Algorithm = implementation("medfed.algorithms.composed:Composed")(**parts)
        return algorithm


def composition_of(value: object) -> object:
    """Build the combination where a study's ``algorithm`` names parts; return any other value as it is."""
    if not isinstance(value, Mapping) or not value.keys() & set(SLOTS):
        return value
    try:
        made = Composition.model_validate({key: part for key, part in value.items() if key != "name"})
    except MedfedError as error:
        raise ValueError(str(error)) from error
    if value.get("name", made.label) != made.label:
        raise ValueError(f"name={value['name']!r} with {', '.join(SLOTS)}: give the name or the parts")
    return made


class FedAvg(Preset):
    """x ← Σ p_i y_i (McMahan et al. 2017, Alg. 1)."""

    name: ClassVar[str] = "fedavg"
    weighting: Weighting = "examples"  # what a client counts in the mean; in the FedKIM paper all count alike

    def composition(self) -> Composition:
        """Return the parts that do nothing more."""
        return Composition(server=Mean(weighting=self.weighting))


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


ALGORITHMS: tuple[type[AlgorithmSettings], ...] = (
    *(FedAvg, FedProx, Scaffold, FedNova, Moon, CreamFL),
    *(FedAdagrad, FedAdam, FedYogi, FedAMS),
    *(FedPer, FedBN, Ditto, PFedMe),
)
