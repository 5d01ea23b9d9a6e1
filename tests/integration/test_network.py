"""One study, three ways: in this process, in two workers, and over a real network give the same bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from medfed.core.progress import Reporter
from medfed.records.folder import RunFolder
from medfed.records.schema import GreetingFile, Round
from medfed.runs.context import RunPaths
from medfed.runs.pipeline import run_study
from medfed.sites.federation import FederationFolder
from medfed.study.study import load_study
from medfed.twins.writing import write_folders
from support.federation_here import InProcessTransport, run_over
from support.federation_trial import SITES, STUDY, Trial

pytestmark = pytest.mark.skipif(find_spec("flwr") is None, reason="the extra flower is not installed")
STUDIES = Path(__file__).parents[2] / "studies"
SCAFFOLD = 'algorithm = {name = "scaffold", option = "II"}'
CREAMFL = STUDY.replace(SCAFFOLD, 'algorithm = "creamfl"').replace("[7, 0, 0, 3]", "[6, 2, 0, 2]")
OpenTrial = Callable[..., Trial]


def weights(run: RunFolder) -> str:
    """SHA-256 of the last checkpoint: the model, the algorithm's state at the server, and what was injected."""
    newest = max((run.root / "checkpoints").glob("[0-9]*"))
    return hashlib.sha256((newest / "state.safetensors").read_bytes()).hexdigest()


def here(trial: Trial, place: Path, num_workers: int) -> RunFolder:
    """Run the trial's study on this machine."""
    cache = FederationFolder.load(trial.server_folder).paths.cache
    places = RunPaths(place, cache, trial.data, workers=num_workers)
    return RunFolder(run_study(trial.study, places, Reporter.silent()))


def over_the_network(trial: Trial) -> RunFolder:
    """Run the trial's study with a server and three sites as processes of their own."""
    server, sites = trial.server(), trial.all_sites()
    assert server.wait() == 0, trial.logs()
    for site in sites:
        assert site.wait() == 0, trial.logs()
    return trial.run


def same_bits(trial: Trial, place: Path) -> RunFolder:
    """Run it three ways and compare; return the run over the network."""
    alone, workers = here(trial, place / "alone", 1), here(trial, place / "workers", 2)
    network = over_the_network(trial)
    assert network.done
    assert weights(alone) == weights(workers) == weights(network)
    for name in ("sites.json", "scores.json", "rounds.jsonl"):
        assert (alone.root / name).read_bytes() == (network.root / name).read_bytes(), name
    return network


def test_scaffold_gives_the_same_bits_in_process_in_workers_and_over_the_network(
    open_trial: OpenTrial, tmp_path: Path
) -> None:
    trial = open_trial()
    network = same_bits(trial, tmp_path)
    assert not (network.root / "clients").exists(), "what SCAFFOLD keeps at a site stays at the site"
    for site in SITES:
        assert list((trial.folder(site).root / "state").rglob("*.safetensors"))
        # On a slow machine the server may take a site for gone and send a message again; the site then answers twice.
        left = list(dict.fromkeys((entry["kind"], entry["round"]) for entry in trial.egress(site)))
        assert left == [("greeting", 0), ("update", 1), ("update", 2), ("update", 3), ("scores", 3)]
        assert "the chain holds" in trial.said(["site", "egress-report", str(trial.root / site)])
    greetings = network.read(GreetingFile).sites
    assert sorted(greetings) == list(SITES)
    assert all(found["counts"] is None for found in greetings.values()), "they leave only if the policy says so"


def test_rounded_changes_give_the_same_bits_at_the_sites(open_trial: OpenTrial, tmp_path: Path) -> None:
    """The messages are those of the network, byte for byte; only nothing carries them."""
    exact = open_trial()
    trial = open_trial(study=STUDY.replace("num_rounds = 3", 'num_rounds = 3\nupload_dtype = "int8"'))
    sent, plain = InProcessTransport(trial), InProcessTransport(exact)
    alone, apart, unrounded = here(trial, tmp_path, 1), run_over(trial, sent), run_over(exact, plain)
    assert weights(alone) == weights(apart) != weights(unrounded)
    for name in ("sites.json", "rounds.jsonl"):
        assert (alone.root / name).read_bytes() == (apart.root / name).read_bytes(), name
    assert all(0 < line.upload_error < 0.05 for line in apart.lines(Round))
    small, large = (
        sum(len(envelope.payload) for _, envelope in found.left if envelope.kind == "update") for found in (sent, plain)
    )
    told, exact_told = (
        sum(client.bytes_up for line in run.lines(Round) for client in line.clients) for run in (apart, unrounded)
    )
    assert told < 0.8 * exact_told, "SCAFFOLD's own half is exact, of the other all but vectors is a quarter"
    assert small < large, "names and facts travel too, and so small a model's weigh much"


def test_class_counts_leave_the_site_whose_policy_lets_them_and_are_those_of_its_training_examples(
    open_trial: OpenTrial,
) -> None:
    trial = open_trial(study=STUDY.replace("num_rounds = 3", "num_rounds = 1"))
    policy = trial.root / SITES[0] / "policy.toml"
    policy.write_text(policy.read_text(encoding="utf-8").replace("class_counts = false", "class_counts = true"))
    greetings = run_over(trial, InProcessTransport(trial)).read(GreetingFile).sites
    counts = {site: found["counts"] for site, found in greetings.items()}
    assert counts[SITES[1]] is None
    assert counts[SITES[2]] is None
    assert sum(counts[SITES[0]]["mp"].values()) == greetings[SITES[0]]["num_examples"]
    assert len(counts[SITES[0]]["mp"]) == 2, "who died and who lived"


def test_creamfl_gives_the_same_bits_with_a_copy_of_the_public_data_at_every_site(
    open_trial: OpenTrial, tmp_path: Path
) -> None:
    trial = open_trial(study=CREAMFL, public=True)
    network = same_bits(trial, tmp_path)
    assert network.done


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedkim-3sites", "scaffold-3sites"])
def test_the_shipped_studies_give_the_same_bits(name: str, open_trial: OpenTrial, tmp_path: Path) -> None:
    write_folders(load_study(STUDIES / f"{name}.toml"), tmp_path / "data", Reporter.silent())
    trial = open_trial(tmp_path / "data", study=(STUDIES / f"{name}.toml").read_text(encoding="utf-8"))
    same_bits(trial, tmp_path)
