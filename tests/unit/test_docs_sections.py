"""The pages' generated sections: verdicts follow the numbers, changes are signed as they are said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import generate
from medfed.records.schema import ComparedDifference, Difference, ScoreFile
from sections import ablation, demo, measured, readme, tables, verdict
from sections.comparison import Results, read_results

Raw = dict[str, Any]
METHODS = ("FedKIM", "FedPlug_L", "FedPlug")
TRAINED, UNSEEN = ("cd", "mp"), ("ped", "sp")


def row(label: str, model: str, task: str, metric: str, value: float | None, **more: object) -> Raw:
    role = "trained" if task in (*TRAINED, "mean-trained") else "unseen"
    facts = {"label": label, "model": model, "task": task, "role": role, "metric": metric, "part": None, "value": value}
    bounds = {} if value is None else {"ci_low": value - 0.02, "ci_high": value + 0.02}
    return facts | bounds | {"per_seed": [value] * 5, "n": 90, "num_seeds": 5, "single_class": False} | more


def gap(label: str, against: tuple[str, str], task: str, value: float, **more: object) -> Raw:
    pair = {"baseline_label": against[0], "baseline_model": against[1], "p": 0.04, "p_holm": 0.3, "significant": False}
    facts = row(label, "fedkim", task, "auroc", value) | pair | more
    return {name: value for name, value in facts.items() if name in ComparedDifference.model_fields}


def comparison(gaps: dict[str, float], unseen: tuple[float, float, float], seeds: int = 5) -> Raw:
    """Three methods; ``gaps`` of FedKIM to the federated-only model by task, ``unseen`` the methods' mean AUROC."""
    rows, differences = [], []
    for method, mean in zip(METHODS, unseen, strict=True):
        for task in (*TRAINED, *UNSEEN):
            rows += [row(method, "fedkim", task, metric, 0.7) for metric in ("auroc", "balanced_accuracy")]
            for model in ("always-yes", "always-no"):
                constant = {"ci_low": 0.5, "ci_high": 0.5, "single_class": True}
                rows += [row(method, model, task, m, 0.5) | constant for m in ("auroc", "balanced_accuracy")]
        rows += [row(method, "federated", task, "auroc", 0.6) for task in TRAINED]
        rows.append(row(method, "fedkim", "mean-unseen", "auroc", mean))
    differences += [gap("FedKIM", ("FedKIM", "federated"), task, value) for task, value in gaps.items()]
    head = {"name": "table3", "labels": list(METHODS), "seeds": {name: list(range(seeds)) for name in METHODS}}
    cells = {name: {"method": name, "backbone": "FedAvg"} for name in METHODS}
    return head | {"cells": cells, "paper": ["Table 3"], "rows": rows, "differences": differences}


def results(**gaps: float) -> Results:
    held = {"cd": 0.01, "mp": 0.0, "mean-trained": 0.005} | {name.replace("_", "-"): v for name, v in gaps.items()}
    return Results.of(comparison(held, (0.66, 0.64, 0.6)))


@pytest.mark.parametrize(
    ("loss", "word"), [(0.016, "supported"), (-0.02, "not distinguishable"), (-0.03, "contradicted")]
)
def test_the_interval_decides_on_the_margin_to_the_federation(loss: float, word: str) -> None:
    each, _ = verdict.against_federated(results(cd=0.1, mp=loss)).lines
    print(f"Mortality prediction: {loss} ± 0.02; the margin is −{verdict.MARGIN}: {each}")
    counts = {"supported": 1, "not distinguishable": 0, "contradicted": 0}
    counts[word] += 1
    assert ", ".join(f"{name} on {count}" for name, count in counts.items()) in each


@pytest.mark.parametrize(
    ("mean", "word"), [(0.021, "supported"), (0.004, "not distinguishable"), (-0.03, "contradicted")]
)
def test_the_mean_must_be_above_the_federation(mean: float, word: str) -> None:
    assert f"**{word}**" in verdict.against_federated(results(mean_trained=mean)).lines[1]


@pytest.mark.parametrize(
    ("steps", "word"),
    [
        ((0.04, 0.03), "supported"),
        ((0.04, 0.01), "not distinguishable"),
        ((0.04, -0.03), "contradicted"),
        ((), "not distinguishable"),
    ],
)
def test_the_order_of_the_methods_needs_both_intervals(steps: tuple[float, ...], word: str) -> None:
    raw = comparison({}, (0.66, 0.64, 0.6))
    for first, second, value in zip(METHODS, METHODS[1:], steps, strict=False):
        raw["differences"].append(gap(first, (second, "fedkim"), "mean-unseen", value))
    (line,) = verdict.order_of_methods(Results.of(raw)).lines
    assert f"FedKIM > FedPlug_L > FedPlug: **{word}**." in line
    assert f"({steps[0]:+.3f} [" in line if steps else "(+0.020)" in line


@pytest.mark.parametrize(
    ("value", "word"), [(0.04, "supported"), (0.01, "not distinguishable"), (-0.04, "contradicted")]
)
def test_medfed_and_fedkim_are_judged_apart_and_against_each_other(value: float, word: str) -> None:
    raw = comparison({"cd": 0.01, "mp": 0.0, "mean-trained": 0.005}, (0.66, 0.64, 0.6))
    raw["labels"] = ["medfed", *raw["labels"]]
    raw["cells"] = {"medfed": {"method": "medfed", "backbone": "FedAvg"}} | raw["cells"]
    raw["seeds"]["medfed"] = list(range(5))
    raw["rows"].append(row("medfed", "fedkim", "mean-unseen", "auroc", 0.66 + value))
    raw["differences"].append(gap("medfed", ("FedKIM", "fedkim"), "mean-unseen", value))
    raw["differences"].append(gap("medfed", ("medfed", "federated"), "cd", 0.1))
    first, second = verdict.order_of_methods(Results.of(raw)).lines
    assert first.startswith(f"FedAvg. medfed > FedKIM: **{word}** ({value:+.3f}".replace("-", "−"))
    assert "FedKIM > FedPlug_L > FedPlug" in second
    lines = verdict.against_federated(Results.of(raw)).lines
    assert [line.partition(".")[0] for line in lines] == ["FedAvg, medfed", "FedAvg, FedKIM", "FedAvg, FedKIM"]


@pytest.mark.parametrize(
    ("value", "word"), [(0.521, "supported"), (0.519, "not distinguishable"), (0.47, "contradicted")]
)
def test_chance_is_beaten_by_the_interval_not_the_value(value: float, word: str) -> None:
    mean, each = verdict.above_chance_level(Results.of(comparison({}, (value, 0.5, 0.5)))).lines
    assert f"**{word}**" in mean
    assert "supported on 2" in each, "0.7 ± 0.02 on both unseen tasks"


def test_one_answer_for_everybody_is_never_above_chance() -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    for one in raw["rows"]:
        one["single_class"] = True
    mean, each = verdict.above_chance_level(Results.of(raw)).lines
    assert "**not distinguishable**" in mean
    assert "supported on 0, not distinguishable on 2" in each


def test_a_model_that_equals_a_constant_does_not_beat_it() -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    (line,) = verdict.against_constants(Results.of(raw)).lines
    assert "supported on 4, not distinguishable on 0, contradicted on 0." in line
    stuck = next(r for r in raw["rows"] if (r["task"], r["metric"]) == ("ped", "balanced_accuracy"))
    stuck |= {"value": 0.5, "ci_low": 0.5, "ci_high": 0.5, "single_class": True}
    (line,) = verdict.against_constants(Results.of(raw)).lines
    assert "supported on 3, not distinguishable on 1" in line


@pytest.mark.parametrize(("value", "word"), [(0.33, "supported"), (0.31, "not distinguishable"), (0.2, "contradicted")])
def test_answers_in_words_are_held_against_the_best_constant(value: float, word: str) -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    whole = {"part": "open", "role": "unseen"}
    raw["rows"] += [row("FedKIM", "fedkim", "mr", "token_f1", value) | whole]
    raw["rows"] += [row("FedKIM", "constant-best", "mr", "token_f1", 0.3) | whole]
    (line,) = verdict.open_answers(Results.of(raw)).lines
    assert f"**{word}**" in line
    assert "VQA-RAD" in line


def test_few_seeds_are_said() -> None:
    assert "Fewer than" not in verdict.verdict(results())
    assert "Fewer than 5 seeds" in verdict.verdict(Results.of(comparison({}, (0.6, 0.6, 0.6), seeds=3)))


def test_what_was_not_measured_is_a_dash_or_left_out() -> None:
    text = tables.headline(results())
    assert (
        "| Pleural effusion (unseen) | 0.700 [0.680, 0.720] | 0.700 [0.680, 0.720] | 0.700 [0.680, 0.720] | – |" in text
    )
    assert "Centralised" not in text
    assert "mean of the unseen closed tasks" in text
    assert "mean of the trained tasks" not in text, "the fake has no such row"


def test_a_change_is_printed_as_change_minus_recipe() -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    raw["differences"] += [
        gap("FedKIM", ("FedPlug_L", "fedkim"), "mean-trained", 0.04, ci_low=0.01, ci_high=0.08),
        gap("FedKIM", ("FedPlug", "fedkim"), "mean-trained", -0.03, ci_low=-0.05, ci_high=-0.02),
        gap("FedKIM", ("FedPlug", "fedkim"), "mean-unseen", 0.01, ci_low=-0.01, ci_high=0.03),
    ]
    text = ablation.ablation(Results.of(raw))
    print("recipe − change = +0.04 [0.01, 0.08], so change − recipe = −0.04 [−0.08, −0.01]: the change loses")
    assert "| FedPlug_L | −0.040 [−0.080, −0.010] |" in text
    assert "It loses on trained tasks (−0.040 [−0.080, −0.010]); on unseen tasks it was not compared" in text
    assert "It gains on trained tasks (+0.030 [+0.020, +0.050]); not distinguishable on unseen tasks (−0.010" in text


def test_the_papers_tables_hold_ours_theirs_and_constants() -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    raw["rows"] += [row(name, "fedkim", "cd", "accuracy", 0.8) for name in METHODS]
    text = tables.paper_tables(Results.of(raw), "Table 3", "trained")
    assert "#### CD (n = 90)" in text
    assert "#### PED" not in text
    assert "| *FedKIM, FedAvg, Wang et al. 2024 (FedKIM), Table 3* |" in text
    assert "| Always yes |" in text
    assert "0.985" in text, "CD, FedKIM with FedAvg: accuracy 98.48 in Table 3"


def test_the_readme_has_the_table_and_the_verdicts() -> None:
    text = readme.headline(results())
    assert "| COVID-19 detection | 0.700 [0.680, 0.720] |" in text
    assert all(f"- {answer.question}" in text for answer in verdict.answers(results()))


def test_the_reading_of_a_run_counts_its_rows() -> None:
    def rows(pairs: dict[str, float], **more: object) -> list[Raw]:
        held = [row("", "fedkim", task, "auroc", value) | more for task, value in pairs.items()]
        return [{name: value for name, value in one.items() if name in Difference.model_fields} for one in held]

    facts = {"rows": rows({"ped": 0.6, "sp": 0.51})}
    facts["differences"] = rows({"cd": 0.05, "mp": -0.01}, baseline="federated")
    text = " ".join(demo.reading(ScoreFile.model_validate(facts)).split())
    assert "on 2 tasks with training: supported on 1, not distinguishable on 1, contradicted on 0." in text
    assert "on 2 tasks without training: supported on 1, not distinguishable on 1, contradicted on 0." in text
    assert "token F1" not in text


def test_only_sections_whose_sweep_is_there_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\nold\n<!-- /b -->\n")
    sections = (("here", page, "a", lambda found: found.typed.name), ("away", page, "b", lambda found: "no"))
    monkeypatch.setattr(generate, "SECTIONS", sections)
    facts = shutil.copy(measured.FILE, tmp_path)
    monkeypatch.setattr(measured, "FILE", Path(facts))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "comparison.json").write_text('{"name": "new", "rows": [], "differences": []}')
    generate.fill("results", tmp_path)
    generate.fill("away", tmp_path / "away")
    assert page.read_text() == "<!-- a -->\nnew\n<!-- /a -->\n<!-- b -->\nold\n<!-- /b -->\n"
    assert read_results(tmp_path / "away") is None
    with pytest.raises(SystemExit, match="no markers"):
        generate.insert(page, "c", "text")
    with pytest.raises(SystemExit, match="none of demo, real, results, and no sweep"):
        generate.fill("relust", tmp_path)


def test_the_most_frequent_answer_is_told_only_where_it_is_not_the_best() -> None:
    raw = comparison({}, (0.6, 0.6, 0.6))
    for task, frequent in (("mr", 0.3), ("ms", 0.25)):
        values = {"fedkim": 0.2, "constant-best": 0.3, "constant-frequent": frequent}
        said = {"part": "open", "role": "unseen"}
        raw["rows"] += [row("FedKIM", model, task, "token_f1", value) | said for model, value in values.items()]
    text = tables.open_table(Results.of(raw))
    assert text.count("| Best constant answer | 90 |") == 2
    assert text.count("| Most frequent answer | 90 | 0.250 [0.230, 0.270] |") == text.count("Most frequent") == 1
    assert "*Always no, computed on the reference answers the authors released*" in text
