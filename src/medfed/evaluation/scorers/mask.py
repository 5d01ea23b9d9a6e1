"""Segmentation by region (WT, TC, ET of BraTS): Dice, IoU and HD95, each the mean over cases.

A case in which only one of truth and prediction is empty has no HD95. It counts as the grid's diagonal, the worst there
can be: were it left out, a model would gain by predicting nothing.
"""

from __future__ import annotations

from math import inf
from statistics import fmean

from medfed.evaluation.scorers.base import MetricInfo, PerExample
from medfed.records.schema import Json

REGIONS = ("wt", "tc", "et")
TITLES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95 (mm)"}
HIGH = {"hd95": inf}


class Mask(PerExample):
    """Truth: voxels by region and the diagonal. Response: Dice, IoU and HD95 by region."""

    name = "segmentation"
    metrics = (
        MetricInfo("dice", "Dice"),
        *(
            MetricInfo(f"{key}_{region}", f"{title} {region.upper()}", key != "hd95", high=HIGH.get(key, 1.0))
            for key, title in TITLES.items()
            for region in REGIONS
        ),
    )
    primary = "dice"

    def numbers(self, truth: Json, response: Json) -> dict[str, float | None]:
        """Return the response's numbers, the missing distances filled in, and the mean Dice of the regions."""
        known = {
            metric.name: truth["diagonal_mm"] if response[metric.name] is None else response[metric.name]
            for metric in self.metrics[1:]
        }
        return {"dice": fmean(known[f"dice_{region}"] for region in REGIONS), **known}
