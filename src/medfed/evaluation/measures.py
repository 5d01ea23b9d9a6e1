"""What a comparison measures: a metric on a part of the examples."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """A metric, and the part of the examples it looks at (None: all)."""

    metric: str
    part: str | None
    higher_is_better: bool
