"""The report of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medfed.report.beside import markdown


def write_comparison(comparison: Mapping[str, Any], folders: Sequence[Path], out: Path) -> None:
    """Write the comparison's tables as ``out``."""
    out.write_text(f"<!doctype html><pre>{escape(markdown(comparison))}</pre>\n", encoding="utf-8")
