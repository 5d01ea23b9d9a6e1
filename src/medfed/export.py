"""Write what a run learned in the forms that others read: adapter (PEFT), encoders and projectors (safetensors)."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from medfed.errors import RunError
from medfed.federated.state import trainable_params
from medfed.loaded import LoadedRun


def export_run(folder: Path, out: Path, cache: Path, foundation: Path | None) -> None:
    """Write the run's adapter (PEFT), encoders and projectors (safetensors) and settings to the new folder ``out``.

    Raises:
        RunError: ``out`` exists, or the run is not finished.
    """
    if out.exists():
        raise RunError("the folder exists", where=out, hint="choose another --out, or remove it")
    run = LoadedRun(folder, cache, foundation)
    run.injector.save(out)
    encoders = {name: value.detach().contiguous() for name, value in trainable_params(run.model.encoders).items()}
    save_file(encoders, out / "encoders.safetensors")
    for name in ("study.json", "normalisation.json", "scores.json"):
        shutil.copyfile(folder / name, out / name)
