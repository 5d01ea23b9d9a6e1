"""The commit, the processor and the day behind every generated section, and the demo on several processors.

``docs/measured.json`` holds them: ``sections`` by marker, and ``processors``, one entry per processor.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parents[1] / "measured.json"
CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = "not recorded"
LINE = re.compile(r"\n+\*Measured at commit [^\n]*\*\Z")
ROWS = (
    ("COVID-19 detection, AUROC", "cd"),
    ("Mortality prediction, AUROC", "mp"),
    ("Enlarged cardiomediastinum (unseen), AUROC", "ecd"),
    ("Pleural effusion (unseen), AUROC", "ped"),
    ("Ectopic beats (unseen), AUROC", "ebd"),
)
"""Title and task of the rows that are compared over processors."""


class Measured(NamedTuple):
    """Origin of a section's numbers: short commit, processor model and day, each as text."""

    commit: str
    processor: str
    date: str

    def __str__(self) -> str:
        commit = f"`{self.commit}`" if re.fullmatch(r"[0-9a-f]+", self.commit) else self.commit
        return f"*Measured at commit {commit}; processor: {self.processor}; {self.date}.*"


def here() -> Measured:
    """Return this checkout, this machine and today."""
    command = ["git", "-C", str(FILE.parent), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    return Measured(commit or UNKNOWN, processor, datetime.now(UTC).date().isoformat())


def of_runs(folders: Iterable[Path]) -> Measured:
    """Return the origin of runs from their ``provenance.json``; where runs differ, all values are named."""
    facts = [_provenance(folder) for folder in folders]
    commits = [str(each["commit"])[:7] if each.get("commit") else UNKNOWN for each in facts]
    dirty = [" with uncommitted changes" if each.get("dirty") else "" for each in facts]
    processors = [_processor(each) for each in facts]
    days = sorted({str(each.get("started") or UNKNOWN)[:10] for each in facts}) or [UNKNOWN]
    day = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return Measured(_joined(map("".join, zip(commits, dirty, strict=True))), _joined(processors), day)


def read() -> tuple[dict[str, Measured], list[dict[str, Any]]]:
    """Return the origin of every section by marker, and the demo's values per processor."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))
    return {marker: Measured(**entry) for marker, entry in raw["sections"].items()}, raw["processors"]


def keep(markers: Iterable[str], measured: Measured, values: Mapping[str, float] | None = None) -> None:
    """Write the origin of the sections of these markers; ``values`` of the demo also go to its processor's entry."""
    sections, processors = read()
    sections.update(dict.fromkeys(markers, measured))
    if values is not None:
        entry = {**measured._asdict(), "values": dict(values)}
        processors = [entry] + [each for each in processors if each["processor"] != measured.processor]
    facts = {"sections": {name: each._asdict() for name, each in sections.items()}, "processors": processors}
    FILE.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def stamped(marker: str, text: str) -> str:
    """Return a section's text with its origin as last line, in place of an earlier one."""
    sections, _ = read()
    bare = LINE.sub("", text.rstrip("\n"))
    return f"{bare}\n\n{sections[marker]}" if marker in sections else bare


def demo_values(run: Path) -> dict[str, float]:
    """Return the injected LLM's values of :data:`ROWS` in a run of the demo."""
    rows = json.loads((run / "scores.json").read_text(encoding="utf-8"))["rows"]
    held = {
        row["task"]: row["value"]
        for row in rows
        if row["model"] == "fedkim" and (row["metric"], row.get("part")) == ("auroc", None) and row["value"] is not None
    }
    return {task: round(held[task], 4) for _, task in ROWS if task in held}


def processor_table() -> str:
    """Return the demo's values, a column per processor, and the distance between lowest and highest."""
    _, processors = read()
    names = [f"{each['processor']}, commit `{each['commit']}`, {each['date']}" for each in processors]
    lines = [["injected LLM, seed 0", *names, "spread"]]
    for title, task in ROWS:
        values = [each["values"].get(task) for each in processors]
        held = [value for value in values if value is not None]
        spread = f"{max(held) - min(held):.2f}" if len(held) > 1 else "–"
        lines.append([title, *("–" if value is None else f"{value:.2f}" for value in values), spread])
    lines.insert(1, ["---", *["--:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _provenance(folder: Path) -> Mapping[str, Any]:
    file = folder / "provenance.json"
    facts: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return facts


def _processor(facts: Mapping[str, Any]) -> str:
    named = str(facts.get("processor") or "unknown")
    return UNKNOWN if named == "unknown" else named


def _joined(texts: Iterable[str]) -> str:
    distinct: Sequence[str] = list(dict.fromkeys(texts)) or [UNKNOWN]
    return " and ".join(distinct)
