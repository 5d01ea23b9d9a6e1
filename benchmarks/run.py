"""``make bench``: measure, print the table, keep the numbers.

    python -m benchmarks.run                              # all groups, on one core in about a quarter of an hour
    python -m benchmarks.run --only experts scoring       # some of them
    python -m benchmarks.run --list
    python -m benchmarks.run --write README.md            # the numbers to docs/bench.json, the table into the README

Numbers are kept after every group. With --only, numbers of other groups stay in the table if machine and versions are
the same.

A benchmark whose variants should compute the same and do not stops with an error: its ratio would mean nothing.
"""

from __future__ import annotations

import os

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from benchmarks import aggregation, caches, experts, exported, federation, gpu, llms, loading, memory, scoring, server
from benchmarks.machine import head
from benchmarks.rows import Row
from benchmarks.table import insert, render
from benchmarks.timing import Bench

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "bench.json"
"""Behind the README's table."""
LATEST = ROOT / "runs" / "bench" / "latest.json"

GROUPS: dict[str, tuple[Callable[[Bench], Iterator[Row]], ...]] = {
    "experts": (experts.linear_rows,),
    "decoder": (experts.decoder_rows,),
    "exported": (exported.exported_rows,),
    "memory": (memory.memory_rows,),
    "llms": (llms.llm_rows,),
    "server": (server.step_rows, server.order_rows, caches.cache_rows),
    "scoring": (scoring.scoring_rows,),
    "round": (federation.round_rows,),
    "wire": (federation.wire_rows,),
    "aggregation": (aggregation.aggregation_rows, aggregation.memory_rows),
    "loading": (loading.loading_rows, loading.cache_rows),
    "gpu": (gpu.gpu_rows,),
}


def measured(group: str, bench: Bench) -> list[Row]:
    """Return the rows of a group."""
    started = time.monotonic()
    rows = list(chain.from_iterable(part(bench) for part in GROUPS[group]))
    sys.stderr.write(f"{group}: {time.monotonic() - started:.0f} s\n")
    return rows


def others(path: Path, about: Mapping[str, str], groups: Sequence[str]) -> list[Row]:
    """Return the rows kept at ``path`` that are of none of ``groups``, if they were taken under the same head."""
    if not path.is_file():
        return []
    before, rows = read_numbers(path)
    is_same = all(before.get(name) == about.get(name) for name in {*before, *about} - {"date"})
    return [row for row in rows if row.group not in groups] if is_same else []


def write_numbers(path: Path, about: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Write what :func:`read_numbers` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"head": dict(about), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_numbers(path: Path) -> tuple[dict[str, str], list[Row]]:
    """Return head and rows."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    return facts["head"], [Row(**row) for row in facts["rows"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, metavar="GROUP", default=list(GROUPS))
    parser.add_argument("--list", action="store_true", help="name the groups and stop")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--json", type=Path, default=LATEST, help="where the numbers are kept")
    parser.add_argument("--write", type=Path, help=f"also put the table into this page, and the numbers into {NUMBERS}")
    chosen = parser.parse_args(arguments)
    if chosen.list:
        sys.stdout.write("\n".join(GROUPS) + "\n")
        return
    about, bench = head() | ({"sizes": "toy"} if chosen.quick else {}), Bench(chosen.quick)
    kept = others(chosen.json, about, chosen.only)
    if chosen.write and (chosen.quick or len({row.group for row in kept} | set(chosen.only)) < len(GROUPS)):
        parser.error("--write is for the whole table at full size")
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers on names that PEFT uses
    for group in chosen.only:
        kept = sorted([*kept, *measured(group, bench)], key=lambda row: list(GROUPS).index(row.group))
        write_numbers(chosen.json, about, kept)
    sys.stdout.write(render(about, kept) + "\n")
    if chosen.write:
        write_numbers(NUMBERS, about, kept)
        insert(chosen.write, render(about, kept))


if __name__ == "__main__":
    main()
