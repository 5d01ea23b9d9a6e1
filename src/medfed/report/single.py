"""The report of one run: sections appear where their data is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime

from medfed.evaluation.controls import NEAREST, is_control
from medfed.evaluation.responses import MEMBER
from medfed.records.schema import CardFile, ExampleCard, Round
from medfed.report import controls, federation, html, learning, results, retention
from medfed.report.charts import LEAST_AXES, Polygon, line_picture, radar_chart, trace_picture
from medfed.report.models import INJECTED, in_first_tables, is_constant, model_order, model_style
from medfed.report.run import Run
from medfed.report.text import count, duration, joined, number, origin, range_text, size

RANGES = {"auroc": ("AUROC", 0.25), "accuracy": ("Accuracy", 0.0), "token_f1": ("Token F1", 0.0)}
"""Metric → title and where a radar's axes start; they end at 1. Of AUROC chance is 0.5; the paper's Figure 2 shows
accuracy."""
CONSTANT = "Best constant answer"
MOST_SKIPPED = 50


def run_page(run: Run) -> html.Page:
    """Return the page of one run."""
    sections = [
        html.Section("pictures", "Clinical pictures", controls.pictures(run)),
        html.Section("results", "Results", results.headline(run)),
        html.Section("controls", "Controls", controls.of_run(run)),
        html.Section("glance", "At a glance", radars(_glance(run))),
        html.Section("examples", "Examples", _examples(run)),
        html.Section("open-questions", "Answers in words", results.open_questions(run)),
        html.Section("retention", "What the LLM kept", retention.kept(run)),
        html.Section("calibration", "Calibration", learning.reliability(run)),
        html.Section("router", "Router", learning.routing(run)),
        html.Section("learning", "Learning", learning.curves(run)),
        html.Section("metrics", "All metrics", results.all_metrics(run)),
        html.Section("clients", "By client", results.by_client(run)),
        html.Section("sites", "At the sites", results.at_sites(run)),
        html.Section("federation", "Federation", federation.federation(run)),
        html.Section("data", "Data", _data(run)),
        html.Section(
            "configuration", "Configuration and provenance", _configuration(run)
        ),  # last: it names what is absent
    ]
    nothing = ["This run has no scores yet, so it says nothing about the method."]
    verdicts = results.sentences(run.all_scores) if run.all_scores.rows else nothing
    kind, made = f"medfed run {run.folder.name}", origin([run.provenance])
    text = "Its fingerprint after injection differs from the one before, though it should be frozen. Do not use these "
    banners = synthetic_banner([run])
    if _frozen(run) is False:
        banners.append(html.Banner("The foundation model changed.", f"{text}numbers.", "alarm"))
    facts = [(label, text) for label, text in _facts(run) if text]
    return html.Page(run.name, kind, sections, made, verdicts, run.study.description, banners, facts)


def synthetic_banner(runs: Sequence[Run]) -> list[html.Banner]:
    """Return the warning that a simulator wrote the data; nothing if none is synthetic."""
    titles = dict.fromkeys(title for run in runs for title in run.synthetic)
    total = len({name for run in runs for name in run.provenance.data})
    named = f"all {total} datasets" if len(titles) == total > 1 else ", ".join(titles)
    text = f"A simulator wrote {named}; no patient is behind them. These scores test the software, not medicine."
    return [html.Banner("Synthetic data.", text)] if titles else []


def radars(drawn: Iterable[tuple[str, Sequence[str], Sequence[Polygon]]]) -> list[html.Part]:
    """Draw a radar per metric over its titled tasks, where there are enough; later polygons lie on top."""
    text = "One axis per unseen task, as in Figure 2 of the FedKIM paper. Its ranges were fixed before any number was "
    text += "known; a value below an axis is drawn in the centre. What lies inside the grey polygon, the best constant "
    text += "answer, is no knowledge."
    figures = []
    for metric, tasks, polygons in drawn:
        if len(tasks) >= LEAST_AXES:
            title, low = RANGES[metric]
            picture = radar_chart(tasks, (low, 1.0), polygons, f"{title} on the unseen tasks")
            legend = [html.Legend(polygon.name, polygon.style) for polygon in [*polygons[1:], polygons[0]]]
            figures.append(html.Figure(title, picture, f"Every axis runs from {low:g} in the centre to 1.", legend))
    return html.when(figures, html.Text(text, "soft"), html.Figures(figures, layout="radars"))


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the key figures under the verdict."""
    clients = {client.client for line in run.lines(Round) for client in line.clients}
    clients |= set(federation.class_counts(run.partition))
    moved = sum(client.bytes_up + client.bytes_down for line in run.lines(Round) for client in line.clients)
    parameters, cost = run.provenance.foundation.get("num_parameters"), run.provenance.cost
    yield "clients", str(len(clients) or "")
    yield "rounds", str(max((line.round for line in run.lines(Round)), default=""))
    yield "method", run.model_title(INJECTED) if run.study.job == "inject" and run.settings else ""
    yield "algorithm", str(run.setting("algorithm.name") or run.setting("algorithm") or "")
    yield "partition", run.partition.scheme if run.partition.hash else ""
    yield "LLM parameters", count(int(parameters)) if isinstance(parameters, int | float) else ""
    yield "moved in all", size(moved) if moved else ""
    if cost is not None:
        yield "sent to clients", size(cost.bytes_down)
        yield "sent to the server", size(cost.bytes_up)
        yield "training at the clients", duration(cost.train_seconds)
        yield "largest memory", size(cost.peak_memory_bytes)
    with suppress(ValueError, TypeError):  # not recorded, or not a time
        started, finished = (
            datetime.fromisoformat(at or "") for at in (run.provenance.started, run.provenance.finished)
        )
        yield "wall time", duration((finished - started).total_seconds())


def _frozen(run: Run) -> bool | None:
    """Whether the foundation's weights are the same before and after; None if not recorded."""
    before, after = (run.provenance.foundation.get(f"fingerprint_{when}") for when in ("before", "after"))
    return before == after if before and after else None


def _glance(run: Run) -> Iterator[tuple[str, Sequence[str], Sequence[Polygon]]]:
    """Yield per metric the unseen tasks that have it, and the values of every model and of the best constant."""
    rows = [row for row in run.all_scores.rows if row.role == "unseen" and row.part in results.LEADING]
    rows = [row for row in rows if row.model == NEAREST or not is_control(row.model)]
    for metric in RANGES:
        held = {(row.model, row.task): row for row in rows if row.metric == metric}
        tasks = run.ordered(task for _, task in held)
        best = [results.best_constant(row for row in held.values() if row.task == task) for task in tasks]
        polygons = [Polygon(CONSTANT, "constant", [row.value if row else None for row in best])]
        for model in model_order(model for model, _ in held if not is_constant(model)):
            values = [row.value if (row := held.get((model, task))) else None for task in tasks]
            polygons.append(Polygon(run.model_title(model), model_style(model), values))
        yield metric, list(map(run.title, tasks)), polygons


def _examples(run: Run) -> list[html.Part]:
    """Example cards, tasks in the study's order."""
    file = run.file(CardFile)
    text = f"{file.rule.capitalize()}. The experts are the heaviest of the task's mixture in the last round. "
    text += "Pictures of real patients are written only by medfed run --show-examples."
    place = {task: index for index, task in enumerate(run.ordered(card.task for card in file.cards))}
    cards = [_example(run, card) for card in sorted(file.cards, key=lambda card: place[card.task])]
    return html.when(cards, html.Text(text, "soft"), html.Cards(cards, "examples"))


def _example(run: Run, card: ExampleCard) -> html.Card:
    traces = [trace_picture(v.title, v.values, v.seconds, v.unit) for v in card.views if v.kind == "trace"]
    answers = [("Truth", html.Cell(card.gold, style="strong"))] if card.gold else []
    for model in filter(_is_on_cards, model_order([*card.probabilities, *card.generated])):
        known = {text: p for text, p in card.probabilities.get(model, {}).items() if p is not None}
        answer = card.generated.get(model) or max(known, key=lambda text: known[text], default=None)
        if answer is not None:
            right = answer.strip().casefold() == card.gold.strip().casefold()
            decoded = "cut at the limit" if model in card.cut else ""
            probability = decoded if model in card.generated else number(known[answer], 2)
            style = "outcome right" if right else "outcome wrong"
            answers.append((run.model_title(model), html.Cell(answer, probability, style)))
    if card.experts:
        listed = ", ".join(f"{expert.expert} ({number(expert.weight, 2)})" for expert in card.experts)
        answers.append(("Experts", html.Cell(listed, style="plain")))
    withheld = html.when(card.withheld or "", html.Text(card.withheld or "", "soft small"))
    image = next((view.png for view in card.views if view.kind == "image"), "")
    lines = [view for view in card.views if view.kind == "line"]
    series = [(view.title, line_picture(view.title, view.values), range_text(view.values)) for view in lines]
    return html.Card(run.title(card.task), withheld, image, traces[0] if traces else "", series, card.question, answers)


def _is_on_cards(model: str) -> bool:
    """A card shows no model of a single client, and of the reused heads the nearest."""
    return in_first_tables(model) and (is_control(model) or MEMBER not in model)


def _data(run: Run) -> list[html.Part]:
    cards = []
    for name, facts in run.provenance.data.items():
        rows = [("Version", facts.version), ("Licence", facts.licence), ("Examples", count(facts.num_examples))]
        rows += [("Patients", count(facts.num_patients)), ("Checksum", facts.checksum), ("Access", facts.access)]
        parts: list[html.Part] = [html.Pairs([(key, text) for key, text in rows if text])]
        parts += html.when(facts.note, html.Text(facts.note, "small"))
        parts += html.when(facts.citation, html.Text(facts.citation, "small soft"))
        listed = [f"{item.where or item.example}: {item.what}" for item in facts.skipped[:MOST_SKIPPED]]
        rest = len(facts.skipped) - MOST_SKIPPED
        listed += [f"and {rest} more"] if rest > 0 else []
        parts += html.when(listed, html.Details(f"{len(facts.skipped)} left out as unreadable", [html.Items(listed)]))
        cards.append(html.Card(facts.title or name, parts))
    return html.when(cards, html.Cards(cards))


def _configuration(run: Run) -> list[html.Part]:
    same = "The foundation model is unchanged bit for bit: its fingerprints before and after injection agree."
    parts: list[html.Part] = [html.Text(same)] if _frozen(run) else []
    if not run.done:
        parts.append(html.Text("The run is not finished: medfed run goes on from its checkpoint."))
    facts = html.Pairs([(key, text) for key, text in _provenance(run) if text])
    parts.append(html.Details("Provenance", [facts], unfolded=True))
    settings = html.Details(f"All settings ({len(run.settings)})", [html.Pairs(run.settings, "mono")])
    parts += html.when(run.settings, settings)
    notes = [f"{file}: {problem}" for file, problem in run.notes]
    absent = html.Details("Absent or unreadable in this run", [html.Items(notes)], unfolded=True)
    return [*parts, *html.when(notes, absent)]


def _provenance(run: Run) -> Iterator[tuple[str, str]]:
    facts, part = run.provenance, run.partition
    dirty = " with uncommitted changes" if facts.dirty else ""
    yield "command", facts.command if isinstance(facts.command, str) else " ".join(facts.command)
    yield "commit", f"{facts.commit}{dirty}" if facts.commit else "not recorded"
    for name in ("medfed", "python", "device", "processor", "platform", "threads", "started", "finished"):
        yield name, str(getattr(facts, name) or "")
    yield "packages", joined(f"{name} {version}" for name, version in facts.versions.items())
    yield "plugins", joined(f"{plugin.name} {plugin.sha256}" for plugin in facts.plugins)
    yield "partition", f"{part.scheme}, seed {part.seed}, hash {part.hash}" if part.hash else ""
    for key, value in facts.foundation.items():
        yield f"foundation {key.replace('_', ' ')}", str(value)
