"""Sites: alone and together they give the same bits; their test patients stay apart; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from medfed.core.errors import DataError, StudyError, UpdateRejectedError
from medfed.core.progress import Reporter
from medfed.core.types import Batch, Failure
from medfed.data.cohort import Cohort, cohort_of, server_cohort, with_reports
from medfed.data.decode import Reading, check_folder, decode_all
from medfed.data.sites import load_site, moments_at, moments_json, moments_of, pool, public_sets, site_client
from medfed.data.sources import Sources, find_site, find_sources, server_sources, site_folders
from medfed.federated.state import load_weights, weights_of
from medfed.modalities.base import Moments
from medfed.records.folder import RunFolder
from medfed.records.schema import FailedClient, PartitionFile, SiteFile
from medfed.report.federation import partition_rows
from medfed.runs.baselines import pooled
from medfed.runs.federation import FederationRun, Trainee, build_model, clients_of
from medfed.runs.sites import scores_of, site_file, site_scores
from medfed.study.study import Study, study_of
from medfed.tasks.base import TaskSet
from medfed.twins.writing import write_folders

SILENT = Reporter.silent()
READ = Reading(SILENT)
LARGE = {"scheme": "sites", "num_clients": 2, "min_examples": 1000}


def study(**changes: object) -> Study:
    tree = {
        "name": "sites",
        "job": "benchmark",
        "train": ["cd", "mp"],
        "baselines": [],
        "algorithm": "fedavg",
        "twins": {"num_patients": 30, "image_size": 64},
        "partition": {"scheme": "sites", "num_clients": 2, "holdings": {"site-1": ["yaib-mortality"]}},
        "rounds": {"num_rounds": 1},
        "encoders": dict.fromkeys(("vitals", "labs", "input", "output"), "transformer") | {"image": "vit-mini"},
        "evaluation": {"num_resamples": 20, "watch_every": 0},
        **changes,
    }
    return study_of(tree, "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "data"
    write_folders(study(), folder, SILENT)
    return folder


@pytest.fixture(scope="module")
def sources(root: Path) -> Sources:
    return find_sources(study(), root, root / "unused", SILENT)


@pytest.fixture(scope="module")
def cohort(sources: Sources) -> Cohort:
    return cohort_of(study(), sources, decode_all(study(), sources.roots, READ), READ)


def same(one: Batch, other: Batch) -> bool:
    equal = [torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs]
    equal += [torch.equal(one.present[name], other.present[name]) for name in one.present]
    return all(equal) and torch.equal(one.target, other.target) and one.examples == other.examples


def test_a_site_alone_is_the_client_that_the_cohort_of_one_process_has(root: Path, cohort: Cohort) -> None:
    made, told = study(), {}
    for site, folder in site_folders(root).items():
        alone = load_site(made, site, find_site(made, site, folder), READ)
        told[site] = json.loads(json.dumps(moments_json(moments_at(made, alone))))
    together = pool({site: moments_of(values) for site, values in reversed(told.items())})
    assert moments_json(together) == moments_json(cohort.moments)
    here = {client.id: client for client in clients_of(made, cohort)}
    assert list(here) == ["site-0", "site-1"]
    for site, folder in site_folders(root).items():
        alone = load_site(made, site, find_site(made, site, folder), READ)
        client, tests = site_client(made, alone, together)
        assert list(client.tasks) == list(here[site].tasks)
        for mine, theirs in ((client.tasks, here[site].tasks), (tests, cohort.site_tests[site])):
            for name, examples in mine.items():
                assert len(examples) > 0
                assert same(examples.batch(np.arange(len(examples))), theirs[name].batch(np.arange(len(examples))))


def test_the_server_alone_has_what_it_has_in_one_process(root: Path, cohort: Cohort) -> None:
    found = server_sources(study(), root, root / "unused", SILENT)
    alone = server_cohort(study(), decode_all(study(), found.roots, READ), cohort.moments)
    assert alone.clients == {}
    assert alone.site_tests == {}
    for part in ("public", "development", "test"):
        mine, theirs = getattr(alone, part), getattr(cohort, part)
        assert mine.keys() == theirs.keys()
        for name, examples in mine.items():
            assert same(examples.batch(np.arange(len(examples))), theirs[name].batch(np.arange(len(examples))))
    assert alone.client_tests.keys() == {"server"} == cohort.client_tests.keys()


def test_a_copy_of_the_servers_folder_gives_a_site_the_servers_public_examples(root: Path, cohort: Cohort) -> None:
    given = public_sets(study(), root / "server", cohort.moments, READ)
    assert {name: sets.examples for name, sets in given.items()} == {
        name: sets.examples for name, sets in cohort.public.items()
    }
    needs = study(algorithm="creamfl")
    alone = load_site(needs, "site-1", find_site(needs, "site-1", root / "site-1"), READ)
    assert site_client(needs, alone, cohort.moments, given)[0].public == given
    with pytest.raises(StudyError, match=r"site 'site-1'.*public data(.|\n)*copy the server's folder"):
        site_client(needs, alone, cohort.moments)


def patients(sets: dict[str, TaskSet]) -> set[str]:
    return {patient for examples in sets.values() for patient in examples.patients}


def test_no_test_patient_is_trained_on_and_no_site_has_anothers_patients(cohort: Cohort) -> None:
    everybody: list[set[str]] = [patients(getattr(cohort, part)) for part in ("public", "development", "test")]
    for site in cohort.clients:
        everybody += [patients(dict(cohort.clients[site])), patients(dict(cohort.site_tests[site]))]
    assert all(everybody)
    assert sum(map(len, everybody)) == len(set.union(*everybody))


def test_equal_ids_at_two_sites_are_two_people(sources: Sources, cohort: Cohort) -> None:
    raw = {
        site: pl.read_parquet(next(roots["yaib-mortality"].rglob("outc.parquet")))
        for site, roots in sources.sites.items()
    }
    assert set(raw["site-0"]["stay_id"]) & set(raw["site-1"]["stay_id"]), "the twins number their stays alike"
    held = [set(parts["yaib-mortality"]) for parts in cohort.partition["clients"].values()]
    assert len(set.union(*held)) == sum(map(len, held))


def test_a_site_lacks_what_it_does_not_hold_and_tells_no_classes(cohort: Cohort) -> None:
    assert set(cohort.clients["site-1"]) == {"mp"}
    assert cohort.partition["counts"] == {}
    assert cohort.partition["num_examples"]["site-1"] == {"mp": len(cohort.clients["site-1"]["mp"])}


def test_what_sites_elsewhere_told_is_on_record_and_no_more(cohort: Cohort) -> None:
    told = with_reports(cohort, {"b": 7, "a": 5}, {"a": None, "b": {"mp": {"no": 4, "yes": 3}}}).partition
    assert told["counts"] == {"b": {"mp": {"no": 4, "yes": 3}}}
    assert told["num_examples"] == {"a": {"all tasks": 5}}
    rows = {
        (client, task): (count, classes)
        for client, task, count, classes in partition_rows(PartitionFile.model_validate(told))
    }
    assert rows == {("a", "all tasks"): (5, "examples 5"), ("b", "mp"): (7, "no 4, yes 3")}


def test_a_policys_tasks_and_least_number_of_examples_are_kept_to(root: Path) -> None:
    roots = find_site(study(), "site-0", root / "site-0")
    served = load_site(study(), "site-0", roots, READ, {"cd"})
    assert set(served.train) == set(served.test) == {"cd"}
    assert set(served.data) == {"covid-radiography"}
    with pytest.raises(StudyError, match=r"site 'site-0': none of the study's tasks \(cd, mp\)"):
        load_site(study(), "site-0", roots, READ, {"lod"})
    with pytest.raises(DataError, match=r"site 'site-0': \d+ training examples, at least 1000"):
        load_site(study(partition=LARGE), "site-0", roots, READ)


def test_a_site_too_small_for_the_study_is_left_out_by_name(sources: Sources) -> None:
    made = study(partition={"scheme": "sites", "num_clients": 2, "min_examples": 30})
    found = cohort_of(made, sources, decode_all(made, sources.roots, READ), READ)
    assert found.partition["left_out"] == ["site-1"]
    assert set(found.clients) == set(found.site_tests) == {"site-0"}
    kept = load_site(made, "site-0", sources.sites["site-0"], READ)
    assert moments_json(found.moments) == moments_json(moments_at(made, kept)), "nor do its moments count"
    with pytest.raises(DataError, match=r"site 'site-1': \d+ training examples, at least 30"):
        load_site(made, "site-1", sources.sites["site-1"], READ)
    nobody = study(partition={"scheme": "sites", "num_clients": 2, "min_examples": 500})
    with pytest.raises(DataError, match=r"site-0, site-1: every site has fewer than partition.min_examples = 500"):
        cohort_of(nobody, sources, decode_all(nobody, sources.roots, READ), READ)


def test_centralised_data_is_that_of_all_sites(cohort: Cohort) -> None:
    (whole,) = pooled(cohort).clients.values()
    parts = [cohort.clients[site]["mp"] for site in ("site-0", "site-1")]
    assert whole["mp"].examples == parts[0].examples + parts[1].examples
    last = whole["mp"].batch(np.array([len(whole["mp"]) - 1]))
    assert same(last, parts[1].batch(np.array([len(parts[1]) - 1])))


@pytest.mark.parametrize("algorithm", ["fedavg", "fedper", "ditto"])
def test_a_site_is_scored_with_the_model_that_is_deployed_there(algorithm: str, cohort: Cohort, tmp_path: Path) -> None:
    made = study(algorithm=algorithm)
    run = RunFolder(tmp_path)
    federation = FederationRun(run, made, cohort, Trainee("federated", build_model(made)))
    federation.run(SILENT, "")
    written, model, briers = run.read(SiteFile).scores["federated"], build_model(made), []
    for site, tests in cohort.site_tests.items():
        load_weights(model, federation.deployed(site))
        assert written[site] == site_scores(model, tests)
        load_weights(model, weights_of(federation.model))
        briers.append(site_scores(model, tests)["mp"]["brier"] == written[site]["mp"]["brier"])
    assert all(briers) == (algorithm == "fedavg")


def test_the_mean_over_sites_is_weighted_and_the_worst_site_named() -> None:
    first, second = {"n": 30.0, "auroc": 0.9, "brier": 0.1}, {"n": 10.0, "auroc": 0.5, "brier": 0.3}
    lost = Failure("site-2", 3, "evaluate", "no answer")
    answers = {"site-0": {"mp": first}, "site-1": {"mp": second}, "site-2": lost}
    made = site_file(study(), {"federated": answers})
    rows = {row.metric: row for row in made.rows if row.task == "mp"}
    assert rows["auroc"].pooled == pytest.approx((30 * 0.9 + 10 * 0.5) / 40)
    assert (rows["auroc"].worst, rows["auroc"].worst_site) == (0.5, "site-1")
    assert (rows["brier"].worst, rows["brier"].worst_site) == (0.3, "site-1")
    assert rows["accuracy"].pooled is None
    assert made.failures == (FailedClient(model="federated", client="site-2", phase="evaluate", reason="no answer"),)


@pytest.mark.parametrize(
    "scores",
    [
        [],
        {"mp": {"auroc": "high", "n": 3}},
        {"mp": {"auroc": float("nan"), "n": 3}},
        {"mp": {"auroc": 0.5}},
        {"mp": {"auroc": 0.5, "n": 0}},
        {"mp": {"auroc": 0.5, "n": 1.5}},
        {"mp": {"patients": 0.5, "n": 3}},
        {"lod": {"auroc": 0.5, "n": 3}},
    ],
)
def test_scores_that_cannot_be_are_refused(scores: object) -> None:
    with pytest.raises(UpdateRejectedError, match="site 'a'"):
        scores_of(scores, "a", study())


def test_moments_of_another_study_and_broken_ones_are_refused() -> None:
    one, wide = Moments.zero(1), Moments.zero(2)
    with pytest.raises(DataError, match=r"site 'b': .*'image'"):
        pool({"a": {"image": one}, "b": {"image": wide}})
    with pytest.raises(DataError, match=r"site 'b': .*'ecg'"):
        pool({"a": {"image": one}, "b": {"image": one, "ecg": one}})
    for broken in (
        {"count": [1.0], "total": [1.0]},
        {"count": [1.0], "total": [1.0, 2.0], "squares": [1.0]},
        {"count": [-1.0], "total": [1.0], "squares": [1.0]},
        {"count": [1.0], "total": [float("inf")], "squares": [1.0]},
        [],
    ):
        with pytest.raises(DataError, match="moments of 'image'"):
            moments_of({"image": broken})


def test_a_folder_that_is_no_federation_is_refused_with_the_next_step(root: Path, tmp_path: Path) -> None:
    def find() -> None:
        find_sources(study(), tmp_path, tmp_path, SILENT)

    with pytest.raises(DataError, match=r"no folder 'server'(.|\n)*medfed data synth --study"):
        find()
    (tmp_path / "server").symlink_to(root / "server")
    with pytest.raises(DataError, match=r"no site's folder(.|\n)*next to the server's"):
        find()
    (tmp_path / "clinic").mkdir()
    with pytest.raises(DataError, match=r"site 'clinic'.*folder is empty(.|\n)*next step"):
        find()
    (tmp_path / "clinic" / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(DataError, match=r"site 'clinic'.*none of.*covid-radiography, yaib-mortality(.|\n)*next step"):
        find()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": {"scheme": "sites", "num_clients": 2, "holdings": {"site-2": ["yaib-mortality"]}}}, "'site-2'"),
        ({"partition": {"scheme": "sites", "num_clients": 2, "holdings": {"site-1": ["ptbxl"]}}}, "'site-1'.*'ptbxl'"),
        ({"partition": {"scheme": "sites", "num_clients": 2, "holdings": {"site-1": ["yaib"]}}}, "yaib-mortality"),
        ({"partition": {"scheme": "sites", "num_clients": 2, "holdings": {"site-1": []}}}, "'site-1' without"),
        ({"partition": {"scheme": "iid", "holdings": {"client-0": ["yaib-mortality"]}}}, 'scheme = "sites"'),
        ({"missing": {"by": "client", "share": 0.5}}, "partition.holdings"),
    ],
)
def test_holdings_and_settings_that_no_site_can_have_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(**changes)


def test_every_site_of_a_federation_is_checked(root: Path) -> None:
    assert check_folder(root, [], SILENT) == 0
    assert check_folder(root, ["yaib-mortality"], SILENT) == 0
