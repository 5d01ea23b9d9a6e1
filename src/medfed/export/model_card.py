"""The model card of an export: a README in the Hugging Face form, written from the run's files.

Sections follow Mitchell et al. 2019 (model cards): what it is, how to load it, data, scores with trivial answers,
intended use, limits, privacy. Every score is a row of the run's ``scores.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from huggingface_hub import ModelCardData

from medfed.evaluation.controls import JUDGED
from medfed.records.schema import ScoreRow
from medfed.report.models import INJECTED, model_order, model_title
from medfed.report.results import against_controls, best_constant
from medfed.report.retention import lines_of
from medfed.report.run import Run
from medfed.report.text import bounds, markdown_table, number, origin


class CardFacts(NamedTuple):
    """Facts of a card that the run's files do not hold: of one task, or of the routed adapter of all (None).

    ``update`` has sentences on rank, expert weights and truncation. ``inputs`` describe by modality shape, units and
    encoder, ``datasets`` by dataset what it was used for. ``base_model`` is the LLM's name on the Hub, or its folder's
    without the way there. The question is empty where every example brings its own.
    """

    task: str | None
    title: str
    question: str
    kind: str  # lora, merged, none or routed
    base_model: str
    base_is_local: bool
    update: Sequence[str]
    inputs: Mapping[str, str]
    datasets: Mapping[str, str]


def model_card(run: Run, facts: CardFacts, checksums: Mapping[str, str]) -> str:
    """Return the card in Markdown, front matter first; ``checksums`` holds a SHA-256 by relative path."""
    parts = [
        _front(run, facts),
        f"# {facts.title}: {facts.base_model}, injected by medfed",
        _summary(run, facts),
        "## How to load it",
        _loading(facts),
        "## Inputs",
        markdown_table(["modality", "sample"], list(facts.inputs.items())),
        "## Data",
        _data(run, facts),
        "## Scores",
        *([task_scores(run, facts.task)] if facts.task else []),
        "All tasks of the run; a constant answer has AUROC 0.5.",
        *against_controls(run.all_scores),
        all_scores(run),
        *_retention(run),
        *_ends(run),
        "## Files",
        markdown_table(["file", "SHA-256"], [[name, f"`{digest}`"] for name, digest in checksums.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _front(run: Run, facts: CardFacts) -> str:
    """Return the Hub's metadata. No ``model-index``: the Hub would list scores without interval or n."""
    lora = ["lora"] if facts.kind in ("lora", "routed") else []
    metadata = ModelCardData(
        base_model=facts.base_model,
        library_name={"merged": "transformers", "lora": "peft"}.get(facts.kind, "medfed"),
        license="other",
        license_name="as-base-model-and-data",
        tags=["medfed", "medical", "federated-learning", *lora, *["synthetic-data"] * bool(run.synthetic)],
        base_model_relation={"lora": "adapter", "merged": "merge"}.get(facts.kind),
    )
    return f"---\n{metadata.to_yaml()}\n---"


def _summary(run: Run, facts: CardFacts) -> str:
    by, count = run.setting("algorithm.name") or run.setting("algorithm"), run.setting("rounds.num_rounds")
    who = f"Hospitals trained encoders on data that never left them ({by}, rounds: {count or 'unknown'})"
    if run.setting("federate") == "false":
        who = f"No hospital took part: encoders were trained on the server's public data alone (rounds: {count})"
    what = (
        f"{who}; a server injected what was learned into the frozen LLM {facts.base_model} (federated knowledge "
        f"injection, Wang et al. 2024). Study `{run.name}`, run `{run.folder.name}`, medfed {run.provenance.medfed}. "
        f"{origin([run.provenance])}"
    )
    question = [f"Question: *{facts.question}*"] if facts.question else []
    return "\n\n".join([what, *question, *facts.update])


def _loading(facts: CardFacts) -> str:
    task = """\
```python
from pathlib import Path
from medfed.export.exported import ExportedTask, Processor

task = ExportedTask.load(Path("."))                            # the LLM elsewhere: foundation=Path(...)
task.probabilities({"MODALITY": array})                        # answer → probability
Processor.load(Path(".")).embeddings({"MODALITY": array})      # the prompt, for a server; no LLM
```"""
    name, stock = json.dumps(facts.base_model), 'model = AutoModelForCausalLM.from_pretrained(".")'
    if facts.kind == "lora":
        stock = f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({name}), ".")'
    if facts.kind == "routed":
        return (
            "The adapter is routed by the descriptions of task and modality, so it needs medfed: `medfed predict` and "
            "`medfed play` read the run, `medfed export --task` writes one task as an ordinary LoRA."
        )
    if facts.kind == "none":
        return f"The LLM is the base model as it is; encoders and projectors are in `processor/`.\n\n{task}"
    place = (  # where PEFT looks for the LLM
        f"{name} is the folder of the LLM. `base_model_name_or_path` in `adapter_config.json` is its path on the "
        "machine of the export; elsewhere load the LLM from where it lies.\n\n"
    )
    return (
        f"{task}\n\nStock libraries load the weights, without medfed:\n\n```python\n{stock}\n```\n\n"
        f"{place if facts.base_is_local and facts.kind == 'lora' else ''}"
        "The LLM reads `inputs_embeds`: `processor/processor.json` gives the order, texts and token ids, "
        "the safetensors next to it encoders, projectors and heads. Serving: docs/deployment.md of medfed."
    )


def _data(run: Run, facts: CardFacts) -> str:
    lines = []
    for name, role in facts.datasets.items():
        if (item := run.provenance.data.get(name)) is not None:
            size = f"{item.num_examples:,} examples, {item.num_patients:,} patients"
            lines.append([item.title or name, item.version, item.licence, size, role, item.citation])
    text = markdown_table(["dataset", "version", "licence", "size", "used for", "source"], lines)
    counted = run.partition.counts.items()
    trained = {client: {task: sum(of.values()) for task, of in tasks.items()} for client, tasks in counted}
    if trained := trained or run.partition.num_examples:
        tasks = list(dict.fromkeys(task for counts in trained.values() for task in counts))
        rows = [[client, *(str(counts.get(task, 0)) for task in tasks)] for client, counts in trained.items()]
        text += f"\n\nTraining examples by hospital:\n\n{markdown_table(['hospital', *tasks], rows)}"
    if run.synthetic:
        text += f"\n\n**Synthetic, so scores say nothing about patients: {', '.join(run.synthetic)}.**"
    return text


def _retention(run: Run) -> list[str]:
    """Return what the LLM kept of its knowledge; nothing where it was not examined."""
    columns, lines = lines_of(run)
    if not lines:
        return []
    text = "Examinations without patients, before and after injection; value or paired difference [95 % interval]."
    return ["## What the LLM kept", f"{text} All experts are mixed evenly.", markdown_table(columns, lines)]


def _ends(run: Run) -> list[str]:
    return [
        "## Intended use",
        "Research on federated and multimodal medical models: comparison, reproduction, further training. It is not a "
        "medical device; no decision about a patient may rest on it.",
        "## Limits",
        "- It answers from what its encoders make of a sample, on the populations, devices and labels above; elsewhere "
        "it is untested.\n"
        "- A task that was not trained is answered by what related tasks taught; read its row above first, with "
        "the constant answers.\n"
        "- Probabilities are comparisons of the answers' likelihoods. They are not calibrated to a prevalence.\n"
        "- The LLM can say anything in words; only the answers of closed questions were scored as probabilities.",
        "## Privacy",
        "In here: weights of encoders, heads, projectors and adapter; per channel a mean and a spread pooled over all "
        "hospitals' training examples; counts of examples; scores. Not in here: records, images, signals, texts, "
        "identifiers or predictions of patients, or any one hospital's update.\n\n"
        "Encoders and heads were trained at the hospitals and on the server's public examples, projectors and adapter "
        "on the public examples. No noise was added to any of them, so weights may still tell whether somebody was "
        "among the training examples. The terms of the datasets and of the base model hold for what was made from "
        "them: check them before you share this folder.",
    ]


METRICS = {None: ("auroc", "accuracy"), "open": ("token_f1",), "closed": ("auroc",)}
"""Metrics of the table of all tasks, by part of the questions."""
PARTS = {None: "", "closed": " (closed questions)", "open": " (open questions)"}
"""A card has no table of both pooled."""


def task_scores(run: Run, task: str) -> str:
    """Return every metric of every model on one task, constants last, with n; or that it was not scored."""
    mine = [row for row in run.all_scores.rows if row.task == task and row.part in PARTS]
    groups = dict.fromkeys((row.part, row.n) for row in mine)  # of closed questions not all have a known class
    tables = [_table(run, [row for row in mine if (row.part, row.n) == group]) for group in groups]
    return "\n\n".join(tables) or "This task was not scored in the run."


def all_scores(run: Run) -> str:
    """Return lines for every task: the injected LLM, the best constant answer, and the control that is hardest to beat.

    The LLM's difference to that control is paired. Bounds are no controls.
    """
    rows = run.all_scores.rows
    lines = [line for task in run.ordered(row.task for row in rows) for line in _lines(run, task)]
    heads = ["task", "", "n", "metric", run.model_title(INJECTED), "best constant answer", "hardest control, LLM − it"]
    return markdown_table(heads, lines)


def _table(run: Run, rows: Sequence[ScoreRow]) -> str:
    by_metric, metrics = {(row.model, row.metric): row for row in rows}, {row.metric: row.title for row in rows}
    models = model_order(row.model for row in rows)
    lines = [[run.model_title(model), *(_cell(by_metric.get((model, name))) for name in metrics)] for model in models]
    positive = f", {rows[0].num_positive} positive" if rows[0].num_positive is not None else ""
    size = f"n = {rows[0].n}{positive}{PARTS[rows[0].part]}; value [95 % interval]"
    reasons = dict.fromkeys(row.reason for row in rows if row.model == INJECTED and row.reason)
    notes = "".join(f"\n\n*Of the {run.model_title(INJECTED)}: {reason}.*" for reason in reasons)
    return f"{size}:\n\n{markdown_table(['model', *metrics.values()], lines)}{notes}"


def _cell(row: ScoreRow | None) -> str:
    return f"{number(row.value)} {bounds(row, 3)}".strip() if row is not None else ""


def _lines(run: Run, task: str) -> Iterator[list[str]]:
    mine = [row for row in run.all_scores.rows if row.task == task and row.n]
    for part, metrics in METRICS.items():
        for metric in metrics:
            rows = [row for row in mine if (row.part, row.metric) == (part, metric)]
            ours, constant = next((row for row in rows if row.model == INJECTED), None), best_constant(rows)
            best = f"{number(constant.value)} ({model_title(constant.model).lower()})" if constant else ""
            if rows:
                title = f"{run.title(task)}{PARTS[part]}"
                hardest = _hardest(run, (task, part, metric))
                yield [title, rows[0].role, str(rows[0].n), rows[0].title, _cell(ours), best, hardest]


def _hardest(run: Run, place: tuple[str, str | None, str]) -> str:
    """Return the control with the least favourable difference at (task, part, metric); empty without any."""
    gaps = [gap for gap in run.all_scores.differences if (gap.task, gap.part, gap.metric) == place]
    known = [gap for gap in gaps if gap.model == INJECTED and gap.baseline in JUDGED and gap.value is not None]
    least = min(known, key=lambda gap: (gap.value or 0.0) * (1 if gap.higher_is_better else -1), default=None)
    if least is None:
        return ""
    return f"{model_title(least.baseline)}, {number(least.value, signed=True)} {bounds(least, 3, signed=True)}".strip()
