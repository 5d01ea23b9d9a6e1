"""Draw the cost of a missing modality, from the leaderboard of studies/missing.toml, with the unimodal bounds.

python docs/missing.py runs/missing   writes docs/missing.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = Path(__file__).parent / "missing.png"
COLOURS = ("#0a5ea8", "#b4530a")
BOUNDS = {"no film": ":", "no text": "--"}


def draw(folder: Path, out: Path) -> None:
    """Draw one panel per task."""
    board = json.loads((folder / "leaderboard.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, len(board["blocks"]), figsize=(9.5, 3.4), squeeze=False)
    for axis, block, colour in zip(axes[0], board["blocks"], COLOURS, strict=False):
        shares = {float(name.split()[0]): value for name, value in block["values"].items() if name.endswith("%")}
        means = [value["mean"] for value in shares.values()]
        spread = [value["std"] or 0.0 for value in shares.values()]
        axis.errorbar(list(shares), means, spread, color=colour, marker="o", capsize=3, label="one modality missing")
        for name, style in BOUNDS.items():
            axis.axhline(block["values"][name]["mean"], color="#57606a", linestyle=style, label=f"bound: {name} at all")
        axis.set(title=" · ".join(block["name"]), xlabel="examples that lack one modality, %", ylabel=block["title"])
        axis.set_xticks(list(shares))
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), OUT)
