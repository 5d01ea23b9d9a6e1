"""The report: complete, honest about gaps, self-contained, escaped, legible; verdicts follow the intervals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from medfed.core.errors import RunError
from medfed.records.schema import Round, ScoreFile
from medfed.report.federation import rounding
from medfed.report.learning import mixtures, sentence
from medfed.report.page import TEMPLATES, build_report, write_report
from medfed.report.published import published
from medfed.report.results import claims, sentences, summary_table
from medfed.report.run import Run
from medfed.report.text import origin, size
from support.fake_runs import TITLES, TRAINED, UNSEEN, fake_run
from support.html_pages import Page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return build_report(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_every_part_is_there(page: Page) -> None:
    for title in TITLES.values():
        assert title in page.text
    parts = ("Results", "At a glance", "Examples", "Calibration", "Router", "Learning", "All metrics", "Federation")
    for part in (*parts, "Data", "Configuration"):
        assert part in page.text
    assert "The router routes" in page.text
    assert "heads.cd.1.weight is not finite" in page.text
    assert "truncated at byte 2048" in page.text
    assert "injection.num_experts" in page.text
    assert "unchanged bit for bit" in page.text
    assert "one answer only" in page.text
    assert "Absent or unreadable" not in page.text


def test_a_section_appears_where_its_data_is(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    anchors = {"router": "injection/routing.jsonl", "examples": "cards.json", "calibration": "predictions"}
    whole = build_report(run)
    for anchor, file in anchors.items():
        assert f'<section id="{anchor}">' in whole
        path = copy / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        html = build_report(copy)
        assert f'<section id="{anchor}">' not in html
        assert f'href="#{anchor}"' not in html
        assert "Absent or unreadable" not in html, "no other run has to have it"


def test_a_run_of_the_papers_recipe_is_called_fedkim_and_one_of_medfeds_is_not(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    study = json.loads((copy / "study.json").read_text())
    titles = {"medfed": "Injected LLM", "paper": "FedKIM", "released": "FedKIM (released code)"}
    for recipe, title in titles.items():
        study["injection"] |= {"recipe": recipe, "num_experts": 12}
        (copy / "study.json").write_text(json.dumps(study))
        html = build_report(copy)
        assert f"{title} minus each control" in html or f">{title}<" in html, recipe
        assert ("FedKIM (released code)" in html) == (recipe == "released")
        assert (">FedKIM<" in html) == (recipe == "paper")


def test_it_says_where_its_numbers_come_from(run: Path, page: Page) -> None:
    assert "commit 3f9c1d7, CPU model not recorded, 2026-01-05. Another CPU model gives other last bits" in page.text
    facts = Run(run).provenance.model_copy(update={"processor": "Xeon 8481C", "dirty": True})
    assert "commit 3f9c1d7 with changes, Xeon 8481C, 2026-01-05" in origin([facts, facts])


def test_values_in_the_page_are_those_of_the_scores(run: Path, page: Page) -> None:
    rows = json.loads((run / "scores.json").read_text())["rows"]
    for row in rows:
        if row["value"] is not None:
            assert f"{row['value']:.3f}".replace("-", "−") in page.text
    low, high = next((r["ci_low"], r["ci_high"]) for r in rows if (r["task"], r["metric"]) == ("lod", "auroc"))
    assert f"[{low:.2f}, {high:.2f}]" in page.text


def with_facts(run: Path, folder: Path, **changes: object) -> Page:
    """Return the page of a folder that holds nothing but a changed provenance."""
    facts = json.loads((run / "provenance.json").read_text()) | changes
    (folder / "provenance.json").write_text(json.dumps(facts))
    return Page(build_report(folder))


def test_synthetic_data_is_announced_and_real_data_is_not(run: Path, page: Page, tmp_path: Path) -> None:
    assert "Synthetic data. A simulator wrote all 5 datasets" in page.text
    real = {"ptbxl": {"title": "PTB-XL", "synthetic": False}, "mine": {"title": "My twin", "synthetic": True}}
    assert "A simulator wrote My twin;" in with_facts(run, tmp_path, data=real).text
    del real["mine"]
    assert "Synthetic data." not in with_facts(run, tmp_path, data=real).text


def test_a_changed_foundation_is_an_alarm(run: Path, tmp_path: Path) -> None:
    changed = {"fingerprint_before": "77ab20c1", "fingerprint_after": "00000000"}
    assert "The foundation model changed" in with_facts(run, tmp_path, foundation=changed).text


def test_it_loads_nothing_and_runs_one_known_script(html: str, page: Page) -> None:
    for name, attributes in page.tags:
        assert not {"srcset", "data", "poster", "action", "background"} & set(attributes), name
        assert name == "img" or "src" not in attributes
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
        assert not any(attribute.startswith("on") for attribute in attributes)
    assert not page.of("link") + page.of("iframe") + page.of("object")
    assert page.of("img")
    assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]+", str(image["src"])) for image in page.of("img"))
    assert not re.search(r"url\(|@import|https?://", html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == len(page.of("script")) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.of("meta") if "http-equiv" in meta)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(html) < 1_500_000


def test_ids_do_not_clash(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5


def test_it_is_accessible(page: Page) -> None:
    for attributes in page.of("svg"):
        assert attributes["role"] == "img"
    drawings = re.findall(r"<svg [^>]*><title>([^<]+)</title>", page.html)
    assert len(drawings) == len(page.of("svg")) > 30
    assert all(attributes["alt"] for attributes in page.of("img"))
    for attributes in page.of("th"):
        assert "scope" in attributes or attributes.get("aria-hidden") == "true"
    for attributes in page.of("div"):
        if attributes.get("class") == "scroll" and "tabindex" in attributes:
            assert attributes["aria-label"]
    assert len(page.of("h1")) == len(page.of("main")) == 1


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_in_both_modes(mode: int) -> None:
    css = (TEMPLATES / "style.css").read_text()
    colours = {name: pair[mode] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)}
    pairs = [(ink, ground) for ink in ("ink", "soft", "fedkim", "good", "bad") for ground in ("page", "card")]
    pairs += [("warn-ink", "warn-page"), ("alarm-ink", "alarm-page"), ("ink", "heat")]
    for ink, ground in pairs:
        lighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        ratio = (lighter + 0.05) / (darker + 0.05)
        assert ratio >= 4.5, f"{ink} on {ground}: {ratio:.2f}"


def test_names_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"onload=y"
    run = fake_run(tmp_path, name=evil, num_examples=30, num_resamples=20)
    facts = json.loads((run / "provenance.json").read_text())
    facts["titles"]["cd"] = evil
    facts["data"]["ptbxl"]["title"] = facts["data"]["ptbxl"]["skipped"][0]["where"] = evil
    (run / "provenance.json").write_text(json.dumps(facts))
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line in rounds:
        line["clients"][0]["client"] = evil
    (run / "rounds.jsonl").write_text("\n".join(map(json.dumps, rounds)))
    html = build_report(run)
    page = Page(html)
    assert html.count("<script>") == 1
    assert evil in page.text
    assert not any(attribute.startswith("on") for _, attributes in page.tags for attribute in attributes)


def test_an_empty_folder_gives_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    page = Page(build_report(tmp_path))
    assert "This run has no scores yet" in page.text
    for name in ("study.json", "scores.json", "rounds.jsonl", "provenance.json", "partition.json"):
        assert f"{name}: absent" in page.text
    assert [attributes["id"] for attributes in page.of("section")] == ["configuration"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["study.json", "provenance.json", "rounds.jsonl", "scores.json"])
def test_a_missing_file_does_not_stop_the_report(run: Path, name: str) -> None:
    path = run / name
    whole = path.read_bytes()
    try:
        path.unlink()
        assert f"{name}: absent" in Page(build_report(run)).text
    finally:
        path.write_bytes(whole)


def test_files_cut_in_half_are_named_and_the_rest_is_there(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    files = [path for path in copy.rglob("*") if path.is_file() and "federated-only" not in path.parts]
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b'{"cut')
    text = Page(build_report(copy)).text
    for path in files:
        name = path.relative_to(copy).as_posix()
        assert re.search(re.escape(name) + r"(:\d+: not JSON|: cannot read it)", text), name
    assert "mean of the round" in text


def test_a_folder_of_another_version_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"schema_version": "99"}')
    with pytest.raises(RunError, match="version '99'"):
        build_report(tmp_path)


def test_numbers_that_are_not_finite_are_gaps_not_crashes(run: Path) -> None:
    path = run / "injection" / "steps.jsonl"
    whole = path.read_text()
    try:
        path.write_text(whole + '{"round": 10, "step": 401, "loss": NaN}\n{"round": 10, "step": 402, "loss": null}\n')
        assert "nan" not in build_report(run).lower().replace("provenance", "")
    finally:
        path.write_text(whole)


def test_a_run_folder_that_does_not_exist_is_an_error_by_name(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such run folder"):
        build_report(tmp_path / "nowhere")


def test_it_is_written_whole_and_the_same_every_time(run: Path, html: str, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    write_report(run, out)
    assert out.read_text(encoding="utf-8") == html
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    with pytest.raises(RunError):
        write_report(tmp_path / "nowhere", out)
    assert out.read_text(encoding="utf-8") == html


def test_the_terminal_table_shows_losers_and_flags(run: Path) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(run))
    text = console.export_text()
    assert len(re.findall(r"\[[\d.]+, [\d.]+\]", text)) == 2 * len(TRAINED) + len(UNSEEN)
    for word in ("supported", "not distinguishable", "contradicted"):
        assert word in text
    assert re.search(r"Mortality.*0\.\d{3}\* \[", text)


def scored(role: str, low: float | None, high: float | None, **fields: object) -> dict:
    value = None if low is None or high is None else (low + high) / 2
    row = {"task": "t", "role": role, "model": "fedkim", "metric": "auroc", "n": 9, "higher_is_better": True}
    return {**row, "value": value, "ci_low": low, "ci_high": high, **fields}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "supported"),
        (-0.2, -0.01, "contradicted"),
        (-0.1, 0.1, "not distinguishable"),
        (0.0, 0.1, "not distinguishable"),
        (None, None, "no value"),
    ],
)
def test_a_difference_counts_only_if_its_interval_excludes_zero(low, high, expected) -> None:
    file = ScoreFile.model_validate({"differences": [scored("trained", low, high, baseline="federated")]})
    assert claims(file)["t"].verdict == expected
    assert f"{expected} on 1" in sentences(file)[0]


@pytest.mark.parametrize(
    ("low", "high", "stuck", "expected"),
    [
        (0.51, 0.9, False, "supported"),
        (0.51, 0.9, True, "not distinguishable"),
        (0.2, 0.49, False, "contradicted"),
        (0.4, 0.6, False, "not distinguishable"),
    ],
)
def test_an_unseen_task_counts_only_if_its_interval_excludes_chance(low, high, stuck, expected) -> None:
    file = ScoreFile.model_validate({"rows": [scored("unseen", low, high, single_class=stuck)]})
    claim = claims(file)["t"]
    assert (claim.text, claim.verdict) == ("above chance", expected)
    assert claim.evidence == ("one answer only" if stuck else "")


ONE, OTHER = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "distinct", "shared", "routes"),
    [
        ([ONE] * 12, 1, 12, False),
        ([ONE] * 11 + [OTHER], 2, 11, False),
        ([ONE] * 6 + [OTHER] * 6, 2, 6, True),
        ([ONE, OTHER, [0.0, 0.0, 1.0]], 3, 1, True),
        ([[0.5 + 0.04 * step, 0.5 - 0.04 * step] for step in range(12)], 5, 3, True),
        ([ONE], 1, 1, False),
        ([], 0, 0, False),
    ],
)
def test_a_router_routes_if_no_mixture_serves_most_tasks(rows, distinct, shared, routes) -> None:
    found = mixtures({str(number): row for number, row in enumerate(rows)})
    assert (found.distinct, found.shared, found.routes) == (distinct, shared, routes)
    if len(rows) > 1:
        assert sentence(found).startswith("The router routes" if routes else "The router does not route")


def test_the_mean_distance_is_no_verdict_on_the_router() -> None:
    print("11 equal rows of 12: the mean over pairs is 11/66 of the distance, above the old threshold of 0.05")
    found = mixtures({str(number): ONE for number in range(11)} | {"last": OTHER})
    assert found.widest == 1.0
    assert "2 distinct mixtures among 12 tasks, and 11 of 12 tasks share one mixture" in sentence(found)


def test_published_numbers_are_fractions_with_a_source() -> None:
    rows = published()
    assert {row.task for row in rows} == {"CD", "LOD", "EAD", "MP", "ECD", "PED", "AD", "EBD", "SP", "MR", "MS", "SNC"}
    assert all(0 <= row.value <= 1 and row.source for row in rows)
    print("FedKIM, Table 3, EAD with FedAvg: accuracy 44.75, precision 61.11, recall 13.80, F1 22.52")
    table = [row for row in rows if row.source.endswith("(FedKIM), Table 3")]
    found = {r.metric: r.value for r in table if (r.task, r.method, r.backbone) == ("EAD", "FedKIM", "FedAvg")}
    assert found == {"accuracy": 0.4475, "precision": 0.6111, "recall": 0.138, "f1": 0.2252}


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_500_000, 22 * 10**9)] == ["0 B", "999 B", "1.0 kB", "1.5 MB", "22.0 GB"]


def test_rounded_changes_come_with_their_error(run: Path) -> None:
    rounds = Run(run).lines(Round)
    assert rounding(rounds) == ""
    lines = [line.model_copy(update={"upload_dtype": "int8", "upload_error": line.round / 1000}) for line in rounds]
    middle = statistics.median(range(1, len(lines) + 1)) / 10
    text = f"{middle:.2g} % of its length in the median round, {len(lines) / 10:.2g} % at most"
    assert "in int8: " in rounding(lines)
    assert text in rounding(lines)
    assert "no weight travels" in rounding([line.model_copy(update={"upload_error": None}) for line in lines])
