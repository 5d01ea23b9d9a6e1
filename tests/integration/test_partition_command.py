"""``medfed data partition``: who holds what, without training."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

from typer.testing import CliRunner

from medfed.cli.app import app

SVG = "{http://www.w3.org/2000/svg}"


def test_the_command_writes_who_holds_what_and_trains_nothing(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        'name = "x"\njob = "benchmark"\ntrain = ["lod"]\nalgorithm = "fedavg"\n[twins]\nnum_patients = 40\n'
        '[partition]\nscheme = "pathological"\nnum_clients = 2\n[encoders]\nimage = "vit-mini"\n',
        encoding="utf-8",
    )
    out = tmp_path / "p.json"
    words = ["data", "partition", str(study), "--out", str(out), "--show", "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text(encoding="utf-8"))
    held = [{name for name, count in own["lod"].items() if count} for own in record["counts"].values()]
    assert sorted(map(sorted, held)) == [["No"], ["Yes"]]
    assert record["hash"] in done.output
    assert ET.fromstring(out.with_suffix(".svg").read_text(encoding="utf-8")).tag == f"{SVG}svg"  # noqa: S314
    assert not (tmp_path / "runs").exists()
