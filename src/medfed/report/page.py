"""The report: one static HTML file without network, dependencies or ids that clash; light, dark, phone and paper.

The only script switches the colour scheme. A content security policy names it by hash. So nothing else in the file
can run or load, whatever the name of a study or a data set.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from markupsafe import Markup

from medfed.core.files import PUBLIC, write_whole
from medfed.records.schema import ComparisonFile, LeaderboardFile
from medfed.report.html import Page
from medfed.report.run import Run

TEMPLATES = Path(__file__).parent / "templates"


def write_report(source: Path | ComparisonFile | LeaderboardFile, out: Path, folders: Sequence[Path] = ()) -> None:
    """Build the report of a run folder, a comparison or a leaderboard and write it to ``out``, whole or not at all.

    Titles, data and settings of what is compared are read from ``folders``. Raises RunError if a folder does not exist,
    or another version of medfed wrote it. Absent or broken files are listed in the report instead.
    """
    write_whole(out, build_report(source, folders), PUBLIC)


def build_report(source: Path | ComparisonFile | LeaderboardFile, folders: Sequence[Path] = ()) -> str:
    """Return the report as HTML; see :func:`write_report`."""
    if isinstance(source, Path):
        from medfed.report.single import run_page

        return render(run_page(Run(source)))
    runs = [Run(folder) for folder in folders]
    if isinstance(source, LeaderboardFile):
        from medfed.report.leaderboard import leaderboard_page

        return render(leaderboard_page(source, runs))
    from medfed.report.comparison import comparison_page

    return render(comparison_page(source, runs))


def render(page: Page) -> str:
    """Return a page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, template = _asset("theme.js"), environment.get_template("report.html.jinja")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(page=page, style=_asset("style.css"), script=script, script_hash=script_hash)


@cache
def _asset(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704
