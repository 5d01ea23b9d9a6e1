"""Write the parts of the documentation that are made from code and from runs.

python docs/generate.py                     docs/data-access.md from the dataset cards
python docs/generate.py --check             only compare
python docs/generate.py demo=runs/demo/…    the README's table between the markers of `demo`, from that run
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from medfed.datasets import DATASETS
from medfed.datasets.base import Dataset

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data-access.md"
README = ROOT / "README.md"
HEAD = """# Data access

medfed reads every dataset in the layout people download; nothing is converted or copied. Put the folders below one data
root, in any arrangement up to three levels deep, and pass it as `--data-root`. `medfed data check ROOT` opens every
file and lists all that are bad. Each dataset has a synthetic twin in the same layout:
`medfed data synth NAME --out DIR`.

Most of these datasets ask for registration or a data use agreement. medfed never downloads data and never sends any.
(This page is made from the dataset cards: `make docs`.)
"""
MODELS = {"fedkim": "FedKIM", "federated": "federated only", "always-yes": "always yes", "always-no": "always no"}


def page() -> str:
    """Return the data page's text."""
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


def results(run: Path) -> str:
    """Return a Markdown table of the run's AUROC and balanced accuracy with 95 % intervals."""
    rows = json.loads((run / "scores.json").read_text(encoding="utf-8"))["rows"]
    titles = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["titles"]
    cells = {(row["task"], row["model"], row["metric"]): row for row in rows}
    tasks = list(dict.fromkeys((row["task"], row["role"], row["n"], row["num_positive"]) for row in rows))
    table = ["| task | n (positive) | AUROC: " + " | AUROC: ".join(["FedKIM", "federated only"]) + " | "]
    table[0] += (
        " | ".join(f"balanced accuracy: {MODELS[model]}" for model in ("fedkim", "federated", "always-no")) + " |"
    )
    table.append("|---|" + "---|" * 6)
    for task, role, count, positive in tasks:
        values = [cell(cells.get((task, model, "auroc"))) for model in ("fedkim", "federated")]
        models = ("fedkim", "federated", "always-no")
        values += [cell(cells.get((task, model, "balanced_accuracy"))) for model in models]
        mark = "" if role == "trained" else " (unseen)"
        table.append(f"| {titles[task]}{mark} | {count} ({positive}) | " + " | ".join(values) + " |")
    return "\n".join(table)


def cell(row: dict[str, Any] | None) -> str:
    """Return a value with its interval, or why there is none."""
    if row is None:
        return "–"
    if row["value"] is None:
        return f"undefined: {row['reason']}"
    if row["ci_low"] is None or row["ci_low"] == row["ci_high"]:
        return f"{row['value']:.2f}"
    return f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"


def insert(name: str, text: str) -> None:
    """Put ``text`` between the README's markers of ``name``."""
    old = README.read_text(encoding="utf-8")
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    new, count = re.subn(pattern, lambda match: match[1] + text + "\n" + match[2], old, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"README.md has no markers <!-- {name} --> … <!-- /{name} -->")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page() and "docs/data-access.md is stale; run: make docs")
    PAGE.write_text(page(), encoding="utf-8")
    for argument in sys.argv[1:]:
        marker, _, folder = argument.partition("=")
        insert(marker, results(Path(folder)))
