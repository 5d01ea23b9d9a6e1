"""The form of an algorithm: three slots, FedAvg's part in each, and how parts combine."""

from __future__ import annotations

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
            raise refusal(what, f"choose one of {name} and {sharing}")
        if self.own_server and not self.default_server().same(parts.server):
            what = f"{name} comes with its own server's step, so it does not combine with {server}: {self.own_server}"
            raise refusal(what, f"leave server out and set the fields of local = {name!r}")


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


def refusal(what: str, hint: str, where: str = "algorithm") -> StudyError:
    """Return the error that refuses a part."""
    return StudyError(what, where=where, hint=hint)


class All(Sharing):
    """Every tensor travels."""

    name: ClassVar[str] = "all"
    implementation: ClassVar[str] = "medfed.algorithms.parts:All"


class Plain(Local):
    """The client's gradients."""

    name: ClassVar[str] = "plain"
    implementation: ClassVar[str] = "medfed.algorithms.parts:Plain"

    @property
    def pull(self) -> float:
        """None at all."""
        return 0.0


class Mean(Server):
    """x ← x + η·mean(y_i − x); with η = 1 and weights by examples FedAvg's (McMahan et al. 2017)."""

    name: ClassVar[str] = "mean"
    implementation: ClassVar[str] = "medfed.algorithms.parts:Mean"
    eta: float = Field(default=1.0, gt=0)  # the server's learning rate η
    weighting: Weighting = "examples"  # what a client counts


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
