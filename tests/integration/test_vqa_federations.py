"""The question-answering tasks in small federations: the loss falls, scores come out, on real questions too."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from medfed.core.catalog import DATASETS
from medfed.data.cohort import Cohort, build_cohort
from medfed.data.decode import decode
from medfed.data.layout import Division
from medfed.datasets.vqa_rad import VqaRadClosed
from medfed.evaluation.scorers import SCORERS
from medfed.models.blip import Blip
from medfed.study.data import PartitionSettings, SplitSettings
from medfed.study.federation import ClientSettings
from support.small_federations import scores, train
from support.twins import SMALL, cohort, model, task


def federate(parts: Cohort, name: str, num_rounds: int) -> tuple[Blip, list[float]]:
    """Train with FedAvg; return the model and the mean client loss of every round."""

    def make() -> Blip:
        torch.manual_seed(0)
        return model(name)

    return train(make, name, parts, ClientSettings(lr=3e-3, batch_size=16), num_rounds)


@pytest.mark.parametrize("name", ["path-vqa", "ehrxqa"])
def test_a_federation_lowers_the_loss_and_is_scored(name: str) -> None:
    parts = cohort(name)
    blip, losses = federate(parts, name, 4)
    assert losses[-1] < losses[0]
    kind = SCORERS[task(name).metric_kind]
    values = scores(task(name), blip, parts.test[name])
    assert set(values) == {metric.name for metric in kind.metrics}
    assert 0 <= values[kind.primary] <= 1


def test_the_record_of_a_partition_counts_kinds_of_answers() -> None:
    counts = cohort("ehrxqa").partition["counts"]
    total = {client: sum(kinds["ehrxqa"].values()) for client, kinds in counts.items()}
    assert total == {client: len(tasks["ehrxqa"]) for client, tasks in cohort("ehrxqa").clients.items()}
    assert {"yes", "no", "text"} <= set().union(*(kinds["ehrxqa"] for kinds in counts.values()))


class Few(VqaRadClosed):
    """Enough questions to train a few steps."""

    def index(self, root: Path) -> pl.DataFrame:
        return super().index(root).head(120)


def test_real_closed_questions_train_and_score_through_the_same_task(real_data: Path) -> None:
    name = "vqa-rad-closed"
    assert type(task(name)) is type(task("path-vqa"))
    root = Few().locate(real_data)
    assert len(VqaRadClosed().index(root)) > 1200
    data = decode(Few(), root, SMALL)
    settings = SplitSettings(official=False)  # the release has no development split
    division = Division([task(name)], [], SMALL, settings, PartitionSettings(num_clients=2), seed=0)
    parts = build_cohort({name: data}, division)
    blip, losses = federate(parts, name, 3)
    assert losses[-1] < losses[0]
    assert 0 <= scores(task(name), blip, parts.test[name])["balanced_accuracy"] <= 1


def test_the_closed_dataset_leaves_the_open_one_as_it_was(real_data: Path) -> None:
    open_, closed = DATASETS["vqa-rad"], DATASETS["vqa-rad-closed"]
    root = closed.locate(real_data)
    assert root == open_.locate(real_data)
    whole, part = open_.index(root), closed.index(root)
    assert "yes" not in whole.columns
    assert set(part["example"]) < set(whole["example"])
    assert part.drop("yes").equals(whole.filter(whole["example"].is_in(part["example"].to_list())))
    assert set(open_.load(root, whole.row(0, named=True))) == {"image"}
