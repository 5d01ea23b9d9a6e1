"""Write the pages that are made from code: ``docs/data-access.md`` from the dataset cards. ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from medfed.datasets import DATASETS
from medfed.datasets.base import Dataset

PAGE = Path(__file__).with_name("data-access.md")
HEAD = """# Data access

medfed reads every dataset in the layout people download; nothing is converted or copied. Put the folders below one data
root, in any arrangement up to three levels deep, and pass it as `--data-root`. `medfed data check ROOT` opens every file
and lists all that are bad. Each dataset has a synthetic twin in the same layout: `medfed data synth NAME --out DIR`.

Most of these datasets ask for registration or a data use agreement. medfed never downloads data and never sends any.
(This page is made from the dataset cards: `make docs`.)
"""


def page() -> str:
    """Return the page's text."""
    return HEAD + "".join(section(name, dataset) for name, dataset in DATASETS.items())


def section(name: str, dataset: Dataset) -> str:
    """Return one dataset's section."""
    card = dataset.card
    lines = [
        f"\n## {card.title}\n",
        f"- name: `{name}`; recognised by `{dataset.marker}`",
        f"- version {card.version}; licence {card.licence}; access: {card.access}",
        f"- modalities: {', '.join(dataset.modalities)}; targets: {', '.join(dataset.targets)}",
    ]
    if card.sites:
        lines.append(f"- sites: {', '.join(card.sites)}")
    lines.append(f"- cite: {card.citation}")
    if card.note:
        lines.append(f"- note: {card.note}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page() and "docs/data-access.md is stale; run: make docs")
    PAGE.write_text(page(), encoding="utf-8")
