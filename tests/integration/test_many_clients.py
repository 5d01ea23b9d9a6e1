"""Two hundred clients in two worker processes: the server's memory does not grow with those that have trained."""

from __future__ import annotations

from pathlib import Path

import scale
from medfed.records.folder import RunFolder
from medfed.records.schema import Round
from medfed.runs.federation import build_model
from medfed.study.encoders import Conv1dSpec
from medfed.study.federation import ClientSettings

CELL = scale.Cell(clients=200, rounds=3, participation=0.1)


def test_two_hundred_clients_on_two_workers_in_flat_memory(tmp_path: Path) -> None:
    changes = {"encoders": {"ecg": Conv1dSpec(dim=256)}, "client": ClientSettings(batch_size=4, local_steps=1)}
    study = scale.study_of(CELL).model_copy(update=changes)
    samples = scale.run_cell(CELL, tmp_path, study)
    rounds = RunFolder(tmp_path).lines(Round)
    assert [len(line.clients) for line in rounds] == [20, 20, 20]
    assert not any(line.failures for line in rounds)
    # A server that kept what twenty clients sent would grow by twenty updates. Ours holds one, which comes and goes;
    # what the allocator does not give back at once was four or five, so half of twenty tells the two apart.
    update_mib = sum(4 * param.numel() for param in build_model(study).parameters()) / scale.MIB
    growth_mib = samples[3].server_mib - samples[2].server_mib
    print(f"an update is {update_mib:.1f} MiB; round 3 added {growth_mib:.1f} MiB to {samples[2].server_mib:.0f}")
    assert growth_mib < 10 * update_mib
