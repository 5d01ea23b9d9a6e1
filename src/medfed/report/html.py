"""``report.html``: one static file without network, dependencies or ids; light and dark, on screen, phone and paper.

The only script switches the colour scheme. A content security policy names it by hash, so nothing else in the file can
run or load, whatever a study or a data set is called.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from medfed.evaluation.metrics import METRICS
from medfed.evaluation.text_metrics import TEXT_METRICS
from medfed.report import cards, federation, glance, learning, names, open_questions, router, sites, tables
from medfed.report.figures import track_axis
from medfed.report.page import render, write_whole
from medfed.report.read import RunFiles, read_run
from medfed.report.verdict import sentences


def build_report(run: Path) -> str:
    """Return the report of the run folder ``run`` as HTML.

    Raises:
        RunError: the folder does not exist. Absent or broken files are listed in the report instead.
    """
    files = read_run(run)
    return render("report.html.jinja", {"run": files, "metrics": METRICS, **_content(files)})


def write_report(run: Path, out: Path) -> None:
    """Build the report of ``run`` and write it to ``out``, whole or not at all."""
    write_whole(build_report(run), out)


def _content(run: RunFiles) -> dict[str, object]:
    trained, unseen = tables.headline(run, "trained"), tables.headline(run, "unseen")
    figure, phases, once = federation.seconds(run)
    return {
        "sentences": sentences(run.scores),
        "synthetic": _synthetic(run),
        "facts": _facts(run),
        "trained": trained,
        "unseen": unseen,
        "axis": track_axis(tables.headline_scale(run)),
        "radars": glance.radars(run),
        "cards": cards.example_cards(run),
        "all_metrics": tables.all_metrics(run),
        "open_blocks": open_questions.open_blocks(run),
        "signatures": open_questions.signatures(run),
        "text_metrics": TEXT_METRICS.values(),
        "missing": tables.missing_reasons(run),
        "sources": tables.published_sources(run),
        "reliability": learning.reliability(run),
        "development": learning.development_curves(run),
        "clients": learning.client_curves(run),
        "injection": learning.injection_curve(run),
        "routing": router.routing(run),
        "partition": federation.partition_table(run),
        "sites": sites.site_tables(run.sites, run.provenance.titles),
        "site_failures": sites.site_failures(run.sites),
        "traffic": federation.traffic(run),
        "rounding": federation.rounding(run),
        "seconds": figure,
        "phases": phases,
        "once": once,
        "failures": federation.failures(run),
        "settings": list(flattened(run.study)) if run.study else [],
        "provenance": _provenance(run),
        "frozen": _frozen(run),
    }


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """The strip of key figures under the verdict; what the run did not record is left out."""
    clients = {client.client for line in run.rounds for client in line.clients} | set(
        run.partition.counts or run.partition.num_examples
    )
    moved = sum(client.bytes_up + client.bytes_down for line in run.rounds for client in line.clients)
    parameters, seconds = run.provenance.foundation.get("num_parameters"), _elapsed(run)
    algorithm = run.study.get("algorithm")
    name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
    facts = [
        ("clients", str(len(clients)) if clients else ""),
        ("rounds", str(max((line.round for line in run.rounds), default="") or "")),
        ("algorithm", str(name or "")),
        ("LLM parameters", names.count(int(parameters)) if isinstance(parameters, int | float) else ""),
        ("moved in all", names.size(moved) if moved else ""),
        ("wall time", names.duration(seconds) if seconds is not None else ""),
    ]
    return [(label, value) for label, value in facts if value]


def _synthetic(run: RunFiles) -> str:
    """Which of the datasets are synthetic, in words; empty if none is."""
    if not run.synthetic:
        return ""
    total = len(run.provenance.data)
    return f"all {total} datasets" if len(run.synthetic) == total > 1 else ", ".join(run.synthetic)


def _elapsed(run: RunFiles) -> float | None:
    try:
        started, finished = run.provenance.started or "", run.provenance.finished or ""
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return None


def _provenance(run: RunFiles) -> list[tuple[str, str]]:
    facts, part = run.provenance, run.partition
    commit = f"{facts.commit}{' with uncommitted changes' if facts.dirty else ''}" if facts.commit else "not recorded"
    command = facts.command if isinstance(facts.command, str) else " ".join(facts.command)
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    threads = "not recorded" if facts.threads is None else str(facts.threads)
    rows = [
        ("command", command),
        ("medfed", facts.medfed),
        ("commit", commit),
        ("Python", facts.python),
        ("packages", versions),
        ("device", facts.device),
        ("threads", threads),
        ("started", facts.started or ""),
        ("finished", facts.finished or ""),
        ("partition", f"{part.scheme}, seed {part.seed}, hash {part.hash}" if part.hash else ""),
        *((f"foundation {key.replace('_', ' ')}", str(value)) for key, value in facts.foundation.items()),
    ]
    return [(label, value) for label, value in rows if value]


def _frozen(run: RunFiles) -> bool | None:
    """Whether the foundation's weights are the same before and after; None if not recorded."""
    before, after = (run.provenance.foundation.get(f"fingerprint_{when}") for when in ("before", "after"))
    return before == after if before and after else None


def flattened(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings under dotted names, values as text."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
