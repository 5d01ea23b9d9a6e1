"""Two runs are compared by what their files hold."""

from __future__ import annotations

from pathlib import Path

from medfed.core.files import sha256_of

CLOCKED = {"timings.jsonl", "provenance.json", "report.html"}
"""Files whose bytes depend on the clock."""


def checksums(run: Path) -> dict[str, str]:
    """Return sha256 by relative path of every file of a run's folder whose bytes do not depend on the clock."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in CLOCKED)
    return {str(path.relative_to(run)): sha256_of(path) for path in files}
