"""A comparison's verdict and its paired differences, in words: one counts only where the evaluation calls it so."""

from __future__ import annotations

from dataclasses import dataclass

from medfed.report.compared import ComparedDifference, Comparison
from medfed.report.matrix import MEANS, METRICS, MODEL, Cells
from medfed.report.names import MISSING, model_title, number
from medfed.report.verdict import Outcome


@dataclass(frozen=True)
class Against:
    """A difference as printed."""

    who: str
    baseline: str
    task: str
    value: str
    p: str
    p_holm: str
    outcome: Outcome
    mean: bool


def sentences(comparison: Comparison) -> list[str]:
    """The verdict: the first cell's AUROC on the means, against its federation and against the other cells."""
    said = []
    first = comparison.labels[0] if comparison.labels else ""
    for task, title in MEANS.items():
        rows, key = comparison.rows, (first, MODEL, task, "auroc")
        row = next((r for r in rows if (r.label, r.model, r.task, r.metric) == key), None)
        if row is None or row.value is None:
            continue
        bounds = f" [{number(row.ci_low, 2)}, {number(row.ci_high, 2)}]" if row.ci_low is not None else ""
        mine = [d for d in comparison.differences if (d.label, d.model, d.task, d.metric) == key]
        found = "; ".join([f"{number(row.value)}{bounds}", *map(_judged, mine)])
        said.append(f"{first}, AUROC, {title[0].lower()}{title[1:]}: {found}.")
    return said or ["The runs have no task in common on which a mean could be taken."]


def _judged(difference: ComparedDifference) -> str:
    words = {"better": "better than", "worse": "worse than", "unclear": "no significant difference from"}
    words["undefined"] = "not comparable with"
    who = _name(difference.baseline_label, difference.baseline_model, difference.label)
    return f"{words[_outcome(difference)]} {who}"


def _outcome(difference: ComparedDifference) -> Outcome:
    """A difference counts only where the comparison calls it significant."""
    if difference.value is None:
        return "undefined"
    if not difference.significant:
        return "unclear"
    return "better" if difference.value > 0 else "worse"


def _name(label: str, model: str, home: str) -> str:
    """A cell or model, named against ``home``: its own federation needs no label."""
    if model == MODEL:
        return label
    return model_title(model) if label == home else f"{model_title(model)} of {label}"


def printed(comparison: Comparison, cells: Cells) -> list[Against]:
    """Every difference of a tabulated metric, metric by metric."""
    rows = [d for d in comparison.differences if d.metric in METRICS]
    return [
        Against(
            _name(d.label, d.model, ""),
            _name(d.baseline_label, d.baseline_model, d.label),
            f"{cells.title(d.task, d.part)}, {METRICS[d.metric]}",
            _gap(d),
            number(d.p),
            number(d.p_holm),
            _outcome(d),
            d.task in MEANS,
        )
        for d in sorted(rows, key=lambda d: list(METRICS).index(d.metric))
    ]


def _gap(difference: ComparedDifference) -> str:
    if difference.value is None:
        return difference.reason or MISSING
    value = number(difference.value, signed=True)
    if difference.ci_low is None or difference.ci_high is None:
        return value
    return f"{value} [{number(difference.ci_low, signed=True)}, {number(difference.ci_high, signed=True)}]"
