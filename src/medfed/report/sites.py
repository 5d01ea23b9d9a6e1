"""How well the last model does at every site, on the site's own held-out patients (``sites.json``)."""

from __future__ import annotations

from dataclasses import dataclass

from medfed.report.names import MISSING, model_order, model_style, model_title, natural, number
from medfed.report.records import SiteFile, SiteRow

TITLES = {"federated": "Deployed (this algorithm)"}


@dataclass(frozen=True)
class SiteLine:
    """A model: its mean over sites weighted by their examples, its worst site, and every site's value."""

    title: str
    style: str
    mean: str
    worst: str
    cells: list[str]


@dataclass(frozen=True)
class SiteTable:
    """A task: its primary metric by model and site; sites are printed with their number of test examples."""

    title: str
    metric: str
    n: int
    sites: list[tuple[str, int]]
    lines: list[SiteLine]


def site_tables(found: SiteFile, titles: dict[str, str], *, deployed: bool = False) -> list[SiteTable]:
    """Return one table per task; ``deployed`` says that ``federated`` is the study's own algorithm."""
    own = TITLES if deployed else {}
    rows = [row for row in found.rows if row.primary]
    return [
        _table(titles.get(task, task.upper()), [row for row in rows if row.task == task], own)
        for task in dict.fromkeys(row.task for row in rows)
    ]


def site_failures(found: SiteFile) -> list[tuple[str, str, str]]:
    """Return (site, phase, reason) of every site that told no scores."""
    return [(failure.client, failure.phase, failure.reason) for failure in found.failures]


def _table(title: str, rows: list[SiteRow], own: dict[str, str]) -> SiteTable:
    counts = {site: n for row in rows for site, n in row.site_n.items()}
    sites = sorted(counts, key=natural)
    models = {row.model: row for row in rows}
    lines = [_line(models[model], sites, own) for model in model_order(list(models))]
    return SiteTable(title, rows[0].title, sum(counts.values()), [(site, counts[site]) for site in sites], lines)


def _line(row: SiteRow, sites: list[str], own: dict[str, str]) -> SiteLine:
    worst = f"{number(row.worst)} ({row.worst_site})" if row.worst_site else MISSING
    cells = [number(row.sites.get(site)) for site in sites]
    return SiteLine(
        own.get(row.model) or model_title(row.model), model_style(row.model), number(row.pooled), worst, cells
    )
