"""What travels × the local step × the server's step: what combines, what is refused and why, what a null part does."""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import pytest
import torch

from medfed.algorithms.parts import ServerPart
from medfed.core.catalog import ALGORITHMS
from medfed.core.errors import StudyError
from medfed.core.types import Params
from medfed.federated.aggregation import Sums
from medfed.federated.rounds import initial_state, run_rounds
from medfed.federated.state import Weights, fingerprint
from medfed.study.algorithms import (
    AlgorithmSettings,
    Composition,
    FedAdam,
    FedAvg,
    FedBN,
    FedNova,
    FedPer,
    FedProx,
    Local,
    Mean,
    Moon,
    Scaffold,
    Server,
    Sharing,
)
from medfed.study.federation import ClientSettings, RoundSettings
from support.federated_toys import SMALL, allowed, run_and_deploy, small_exchange, small_federation, small_model

Parts = dict[str, object]
ADAPTIVE = {"fedadagrad", "fedadam", "fedyogi", "fedams"}
SERVERS = {
    "plain": {"mean", "fednova", *ADAPTIVE},
    "fedprox": {"mean", "fednova", *ADAPTIVE},
    "moon": {"mean", *ADAPTIVE},
    "scaffold": set(),
    "ditto": {"mean", "fednova", *ADAPTIVE},
    "pfedme": set(),
}
"""Local step → the servers it combines with; none beside its own for SCAFFOLD and pFedMe."""
PERSONAL = {"ditto", "pfedme"}
"""Local steps with a personal model, which allow no private tensors."""


def names(kind: type[Sharing | Local | Server], null: str) -> list[str]:
    return [null, *(name for name, part in ALGORITHMS.items() if issubclass(part, kind))]


@pytest.mark.parametrize("local", names(Local, "plain"))
def test_a_combination_is_made_or_refused_with_the_reason(local: str) -> None:
    for sharing, server in product(names(Sharing, "all"), [None, *names(Server, "mean")]):
        parts = {"sharing": sharing, "local": local} | ({"server": server} if server else {})
        sound = (sharing == "all" or local not in PERSONAL) and (server is None or server in SERVERS[local])
        if sound:
            Composition.model_validate(parts)
        else:
            with pytest.raises(StudyError, match=r"(?s): .{40,}next step: ") as refused:
                Composition.model_validate(parts)
            assert local in str(refused.value).lower(), parts


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"local": "moon", "server": "fednova"}, "no effective steps for moon: its contrast"),
        ({"local": "scaffold", "server": "fednova"}, "own server's step.*fednova: its proof moves x"),
        ({"local": "scaffold", "server": "fedadam"}, "own server's step.*fedadam"),
        ({"local": "scaffold", "server": {"name": "mean", "eta": 0.5}}, "own server's step"),
        ({"local": "pfedme", "server": "fednova"}, "own server's step.*envelopes"),
        ({"local": "ditto", "sharing": "fedbn"}, "no global value of the private tensors"),
        ({"local": "pfedme", "sharing": "fedper"}, "no global value of the private tensors"),
        ({"local": "moon", "sharing": FedPer(private_prefixes=("encoders.a",))}, "'encoders.a' private.*contrast is 0"),
        ({"local": "moon", "sharing": FedPer(private_prefixes=("e",))}, "contrast is 0"),
        ({"server": FedNova(mu=0.3)}, "pull is part of the local step.*\n.*fedprox.*0.3"),
    ],
    ids=str,
)
def test_a_refusal_says_why(parts: Parts, reason: str) -> None:
    with pytest.raises(StudyError, match=f"(?s){reason}"):
        Composition.model_validate(parts)


def test_the_servers_step_a_local_step_comes_with_may_be_written_out() -> None:
    written = Composition(local=Scaffold(eta_g=0.5), server=Mean(eta=0.5, weighting="clients"))
    assert written == Composition(local=Scaffold(eta_g=0.5)) == Scaffold(eta_g=0.5).composition()


@pytest.mark.parametrize(
    ("fields", "reason"), [({"optimizer": "adam"}, "optimizer='adam'"), ({"lr": 0.5}, "mu=2.0 with lr=0.5")]
)
def test_client_settings_are_checked_by_the_parts(fields: dict[str, object], reason: str) -> None:
    """FedNova's effective steps depend on the pull, which is another part's."""
    combined = Composition(sharing=FedPer(), local=FedProx(mu=2.0), server=FedNova())
    combined.check(ClientSettings(optimizer="sgd", lr=0.1))
    with pytest.raises(StudyError, match=reason):
        combined.check(ClientSettings.model_validate({"optimizer": "sgd", "lr": 0.1} | fields))


def ends(algorithm: AlgorithmSettings, settings: ClientSettings) -> tuple[Weights, dict[str, Weights]]:
    results, models = run_and_deploy(algorithm, 3, settings)
    assert not any(result.failures for result in results)
    return results[-1].state.weights, models


SCAFFOLD_OFF = Scaffold(control=0.0, weighting="examples")


@pytest.mark.parametrize(
    ("parts", "preset"),
    [
        ({"local": FedProx(mu=0.0), "server": "fedadam"}, FedAdam()),
        ({"local": Moon(mu=0.0), "server": "fedadam"}, FedAdam()),
        ({"sharing": FedPer(private_prefixes=()), "server": "fedadam"}, FedAdam()),
        ({"sharing": FedPer(private_prefixes=()), "local": FedProx(mu=0.3)}, FedProx(mu=0.3)),
        ({"sharing": FedPer(private_prefixes=()), "local": "scaffold"}, Scaffold()),
        ({"sharing": FedPer(private_prefixes=()), "local": "moon"}, Moon()),
        ({"sharing": "fedper", "local": Moon(mu=0.0)}, FedPer()),
        ({"sharing": "fedbn", "local": SCAFFOLD_OFF}, FedBN()),
        ({"sharing": "fedbn", "local": FedProx(mu=0.0), "server": Mean()}, FedBN()),
        ({"local": FedProx(mu=0.4), "server": "fednova"}, FedNova(mu=0.4)),
        ({"local": SCAFFOLD_OFF}, FedAvg()),
        ({}, FedAvg()),
    ],
    ids=str,
)
def test_with_a_null_part_a_combination_is_the_preset_of_the_other(parts: Parts, preset: AlgorithmSettings) -> None:
    algorithm = Composition.model_validate(parts)
    settings = allowed(algorithm, allowed(preset, SMALL))
    (world, models), (plain, others) = (ends(one, settings) for one in (algorithm, preset))
    assert fingerprint(*world) == fingerprint(*plain)
    for client, model in models.items():
        assert fingerprint(*model) == fingerprint(*others[client]), client


def test_ditto_leaves_the_global_model_to_any_server() -> None:
    mine = ends(Composition.model_validate({"local": "ditto", "server": "fedyogi"}), SMALL)
    plain = ends(Composition.model_validate({"server": "fedyogi"}), SMALL)
    assert fingerprint(*mine[0]) == fingerprint(*plain[0])
    assert fingerprint(*mine[1]["h0"]) != fingerprint(*plain[1]["h0"])


@pytest.mark.parametrize("sharing", ["fedper", "fedbn"])
@pytest.mark.parametrize(("local", "server"), [("scaffold", None), ("fedprox", "fedams"), ("moon", "fedadam")])
def test_private_tensors_stay_whatever_they_are_combined_with(sharing: str, local: str, server: str | None) -> None:
    """No round sends one in either direction, no tensor of a part is kept for one, and the server's is as at first."""
    parts = {"sharing": sharing, "local": local} | ({"server": server} if server else {})
    algorithm = Composition.model_validate(parts).build()
    start = initial_state(small_model(), algorithm)
    private = algorithm.private(start.params, start.buffers)
    exchange = small_exchange(algorithm, allowed(algorithm, SMALL))
    rounds = run_rounds(start, exchange, algorithm, small_federation(exchange), RoundSettings(num_rounds=2))
    last = list(rounds)[-1].state
    sent = algorithm.broadcast(last, "base")
    travelled = [sent.params, sent.buffers, sent.state, algorithm.upload_like(last, small_federation(exchange))]
    assert not [name for tensors in travelled for name in tensors if name in private]
    assert not [name for name in last.server_state if any(name.endswith(f"/{tensor}") for tensor in private)]
    for name, value in (*last.params.items(), *last.buffers.items()):
        first = start.params.get(name, start.buffers.get(name))
        assert torch.equal(value, first) == (name in private), name


def test_state_has_the_slots_name_only_where_two_parts_keep_some() -> None:
    both = Composition.model_validate({"sharing": "fedbn", "local": "scaffold"})
    for algorithm, heads in ((both, {"sharing", "local"}), (FedBN(), {"params", "buffers"}), (FedAvg(), set())):
        kept = small_exchange(algorithm, allowed(algorithm, SMALL)).client_state("h0")
        assert {name.partition("/")[0] for name in kept} == heads
    assert {name.partition("/")[0] for name in small_exchange(Scaffold()).client_state("h0")} == set(
        initial_state(small_model(), FedAvg()).params
    )


class FedAvgM(ServerPart):
    """FedAvg with momentum at the server (Hsu et al. 2019): a part whose settings and hooks are one class."""

    name: ClassVar[str] = "fedavgm"
    beta: float = 0.9

    def init(self, params: Params) -> Params:
        return {name: torch.zeros_like(value) for name, value in params.items()}

    def step(self, params: Params, changes: Sums, state: Params) -> tuple[Params, Params]:
        velocity = changes.added_to({name: self.beta * value for name, value in state.items()})
        moved = {name: params[name] + value for name, value in velocity.items()}
        return {**params, **moved}, velocity


def test_a_part_of_ones_own_is_an_algorithm_and_combines() -> None:
    plain = ends(FedAvg(), SMALL)[0]
    alone, still = ends(FedAvgM(), SMALL)[0], ends(FedAvgM(beta=0.0), SMALL)[0]
    for name, value in plain.params.items():
        torch.testing.assert_close(value, still.params[name], rtol=0, atol=1e-6)
    assert fingerprint(*alone) != fingerprint(*plain)
    combined = Composition(sharing=FedBN(), local=FedProx(mu=0.5), server=FedAvgM())
    assert combined.label == "fedbn+fedprox+fedavgm"
    world, models = ends(combined, SMALL)
    assert fingerprint(*world) != fingerprint(*ends(Composition(sharing=FedBN(), server=FedAvgM()), SMALL)[0])
    assert fingerprint(*models["h0"]) != fingerprint(*models["h3"])


def test_a_subclass_of_a_part_keeps_its_own_class() -> None:
    part = FedProx(mu=0.1).implemented()
    kind = type("Own", (type(part),), {"__module__": __name__})
    assert type(kind(mu=0.2).implemented()) is kind
