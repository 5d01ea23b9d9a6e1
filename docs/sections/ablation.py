"""The gain of each part of the injection recipe: every change against the recipe, and a sentence on each."""

from __future__ import annotations

from medfed.evaluation.verdict import CONTRADICTED, SUPPORTED, better, over_controls
from medfed.records.schema import ComparedDifference
from medfed.report.text import MISSING, number, plural
from sections import controls
from sections.comparison import Results, interval, printed, table

COLUMNS = (
    ("mean-trained", "auroc", "AUROC, trained"),
    ("mean-unseen", "auroc", "AUROC, unseen"),
    ("mean-trained", "balanced_accuracy", "balanced accuracy, trained"),
    ("mean-unseen", "balanced_accuracy", "balanced accuracy, unseen"),
)
CHANGES = {
    "labels only": "The LLM learns the public labels; the aggregated heads do not teach it.",
    "no head tokens": "The prompt holds the encoders' tokens only, without the heads' outputs.",
    "no mixing": "The heads judge the public examples themselves, without mixtures of two.",
    "no crossing": "An example comes with its own task's question only.",
    "no public pass": "The server leaves encoders and heads as aggregated.",
    "encoders through the LLM": "Half of the answers are labels, and the LLM's loss trains the encoders as well.",
    "routing reward": "The loss rewards routing tasks to different experts.",
    "no calibration": "Answers to untrained closed questions are taken as the LLM gives them.",
    "half the rate": "The server's learning rate is 5e-4.",
    "four experts of rank 24": "Four experts of rank 24 in place of twelve of rank 8.",
    "one image token": "The image encoder gives one token, the mean of its patches, in place of four.",
    "mlp projector": "Two layers with GELU in place of the linear projector.",
    "align first": "Only the projectors learn in the first two rounds.",
    "one injection, at the end": "The server injects once, after the last round: a tenth of the steps.",
    "fresh optimizer": "The server's optimizer forgets its moments each round.",
    "one LoRA": "One LoRA of rank 8 in place of the experts, without a router.",
    "no experts": "The LLM stays frozen; projectors alone learn.",
    "router of the paper": "Eq. 4 as printed: linear attention, embeddings as they are.",
    "no clients": "The server trains on its public data alone.",
    "no task description": "The router reads the modalities' description alone.",
    "no modality description": "The router reads the task's description alone.",
    "FedKIM": 'The paper as printed: `recipe = "paper"`.',
    "FedKIM (released code)": 'The authors\' code where it differs: `recipe = "released"`.',
    "FedKIM_pub": "No clients: the server trains on its public data alone.",
    "FedKIM_T": "The router does not read the task's description.",
    "FedKIM_M": "The router does not read the modalities' description.",
}


def ablation(results: Results) -> str:
    """A table of changes, each minus the recipe, then a sentence per change."""
    first, *others = results.typed.labels
    base = [results.row(first, "fedkim", task, metric) for task, metric, _ in COLUMNS]
    head = ["change", *(f"{title}, difference" for *_, title in COLUMNS), "AUROC, trained, minus federated only"]
    head += ["loses to a control on", "seeds"]
    home = [_federated(results, first), _losses(results, first), _seeds(results, first)]
    lines = [[f"{first} (its values)", *map(printed, base), *home]]
    sentences = []
    for label in others:
        gaps = [_change(results, first, label, task, metric) for task, metric, _ in COLUMNS]
        cells = [printed(gap, signed=True) for gap in gaps]
        seeds = str(max((gap.num_seeds for gap in gaps if gap is not None), default=0))
        lines.append([label, *cells, _federated(results, label), _losses(results, label), seeds])
        effects = f"{_effect('trained', gaps[0])}; {_effect('unseen', gaps[1])}."
        sentences.append(f"- *{label}.* {CHANGES.get(label, '')} {_capital(effects)}")
    return "\n".join([results.seeds(), "", table(head, lines), "", *sentences])


def _change(results: Results, first: str, label: str, task: str, metric: str) -> ComparedDifference | None:
    """The change minus the recipe: the comparison holds the recipe minus the change. (0 − 0 has no minus sign.)"""
    gap = results.gap((first, label), "fedkim", task, metric)
    if gap is None or gap.value is None:
        return gap
    low, high = (None if bound is None else 0.0 - bound for bound in (gap.ci_high, gap.ci_low))
    return gap.model_copy(update={"value": 0.0 - gap.value, "ci_low": low, "ci_high": high})


def _federated(results: Results, label: str) -> str:
    return printed(results.gap((label, label), "federated", "mean-trained", "auroc"), signed=True)


def _losses(results: Results, label: str) -> str:
    """On how many tasks the LLM loses to at least one control; a dash where the runs are older than the controls."""
    held = over_controls(controls.leading(results, label))
    return f"{len(held.lost)} of {plural(len(held.verdicts), 'task')}" if held else MISSING


def _seeds(results: Results, label: str) -> str:
    return str(len(results.typed.seeds.get(label, ())))


def _effect(role: str, gap: ComparedDifference | None) -> str:
    """Say how a change moves the mean AUROC of a role; a move is clear only if the interval excludes 0."""
    if gap is None or gap.value is None:
        return f"on {role} tasks it was not compared"
    value = f"{number(gap.value, signed=True)} {interval(gap, signed=True)}".strip()
    words = {SUPPORTED: "it gains", CONTRADICTED: "it loses"}
    return f"{words.get(better(gap), 'not distinguishable')} on {role} tasks ({value})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
