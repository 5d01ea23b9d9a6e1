"""Segmentation: windows, loss and region metrics against slow oracles written from their definitions."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfed.core.catalog import TASKS
from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.data.decode import decode
from medfed.evaluation.scorers import SCORERS
from medfed.evaluation.scorers.means import REGIONS
from medfed.modalities.volume import MaskModality
from medfed.tasks.base import Task, TaskSet
from medfed.tasks.segmentation import region_scores, sliding_window, window_starts
from support.native_files import DATASET, all_examples, decoded_twin, grids

BRATS = TASKS["brats"]

MODALITIES = ("t1", "t1c", "t2", "flair")
UNIT = (1.0, 1.0, 1.0)


def toy_batch(shape: tuple[int, ...], size: int = 1, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    inputs = {name: torch.from_numpy(rng.normal(size=(size, *shape)).astype(np.float16)) for name in MODALITIES}
    present = {name: torch.ones(size, dtype=torch.bool) for name in MODALITIES}
    return Batch(inputs, present, torch.from_numpy(rng.integers(0, 4, (size, *shape)).astype(np.uint8)))


def positional(windows: Batch) -> Tensor:
    """What a model could say that depends on a window's content, its mean and the place in it."""
    values = windows.inputs["t1"].double()
    place = torch.arange(values[0].numel(), dtype=torch.float64).reshape(values.shape[1:])
    mean = values.mean((1, 2, 3), keepdim=True)
    return torch.stack([values + mean, place.expand_as(values) * mean], 1)


@pytest.mark.parametrize(
    ("shape", "window", "overlap"),
    [((9, 7, 6), 4, 0.5), ((8, 8, 8), 4, 0.0), ((5, 11, 3), 4, 0.7), ((6, 6, 6), 8, 0.5)],
)
def test_a_volume_by_windows_is_the_mean_of_what_each_window_says(
    shape: tuple[int, ...], window: int, overlap: float
) -> None:
    volume = toy_batch(shape)
    starts = [window_starts(side, window, overlap) for side in shape]
    expected = np.zeros((2, *shape))
    for voxel in product(*map(range, shape)):
        answers = []
        for corner in product(*starts):
            if all(start <= at < start + window for at, start in zip(voxel, corner, strict=True)):
                cut = tuple(slice(start, start + window) for start in corner)
                inputs = {"t1": volume.inputs["t1"][0][cut][None]}
                said = positional(Batch(inputs, {}, volume.target[0][cut][None]))[0]
                answers.append(said[(slice(None), *np.subtract(voxel, corner))].numpy())
        assert answers, f"no window holds {voxel}"
        expected[(slice(None), *voxel)] = np.mean(answers, 0)
    np.testing.assert_allclose(sliding_window(positional, volume, window, overlap), expected, rtol=1e-12)


def test_windows_start_evenly_and_end_flush() -> None:
    assert window_starts(32, 24, 0.5) == [0, 8]
    assert window_starts(100, 40, 0.5) == [0, 20, 40, 60]
    assert window_starts(20, 24, 0.5) == [0]


def slow_hd95(truth: np.ndarray, said: np.ndarray, spacing: tuple[float, ...]) -> float:
    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        return np.array(
            [
                np.array(voxel) - 1
                for voxel in np.argwhere(padded)
                if any(not padded[tuple(voxel + step)] for axis in np.eye(3, dtype=int) for step in (axis, -axis))
            ]
        )

    def directed(one: np.ndarray, other: np.ndarray) -> float:
        distances = [min(np.linalg.norm((a - b) * spacing) for b in other) for a in one]
        return float(np.percentile(distances, 95))

    a, b = surface(truth), surface(said)
    return max(directed(a, b), directed(b, a))


@pytest.mark.parametrize("seed", range(4))
def test_region_scores_equal_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = np.indices((9, 8, 10)).transpose(1, 2, 3, 0)
    truth, said = (
        np.linalg.norm(grid - rng.uniform(3, 6, 3), axis=-1) + rng.normal(0, 0.4, (9, 8, 10)) < radius
        for radius in (3.1, 2.6)
    )
    spacing = (1.0, 1.5, 0.7)
    scores = region_scores(truth, said, spacing)
    shared = sum(1 for voxel in np.ndindex(truth.shape) if truth[voxel] and said[voxel])
    assert scores.dice == pytest.approx(2 * shared / (truth.sum() + said.sum()))
    assert scores.iou == pytest.approx(shared / (truth.sum() + said.sum() - shared))
    assert scores.hd95 == pytest.approx(slow_hd95(truth, said, spacing))


def test_empty_regions_have_their_conventions() -> None:
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert region_scores(empty, empty, UNIT) == (1.0, 1.0, 0.0)
    assert region_scores(full, full, UNIT) == (1.0, 1.0, 0.0)
    assert region_scores(empty, full, UNIT) == (0.0, 0.0, None)
    assert region_scores(full, empty, UNIT) == (0.0, 0.0, None)


def test_the_loss_equals_its_definition_and_leaves_out_what_is_not_there() -> None:
    batch = toy_batch((4, 5, 3), size=2)
    outputs = torch.randn(2, 3, 4, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    outputs[1, 2] = 0  # the second example has no third output
    expected = 0.0
    for output in range(3):
        given = [example for example in range(2) if (example, output) != (1, 2)]
        total = 0.0
        for example in given:
            said = outputs[example, output].softmax(0).numpy()
            truth = batch.target[example].numpy()
            entropy, dice = 0.0, 0.0
            for part in range(4):
                mask = truth == part
                entropy -= (1 - mask.mean()) * np.log(said[part][mask]).sum() / (4 * mask.size)
                dice += 2 * said[part][mask].sum() / (said[part].sum() + mask.sum()) / 4
            total += entropy + 1 - dice
        expected += total / len(given)
    assert float(BRATS.loss(outputs, batch)) == pytest.approx(expected, rel=1e-5)


def test_augment_cuts_and_mirrors_inputs_and_truth_alike() -> None:
    batch = toy_batch((30, 20, 24), size=3)
    for name in MODALITIES:  # every voxel's truth is written into its inputs
        batch.inputs[name][:] = batch.target
    whole = BRATS.augment(batch, np.random.default_rng(0))
    assert whole.target.shape == (3, 24, 20, 24)
    for name in MODALITIES:
        assert torch.equal(whole.inputs[name].to(torch.uint8), whole.target)
    assert torch.equal(whole.target, BRATS.augment(batch, np.random.default_rng(0)).target)
    assert not torch.equal(whole.target, BRATS.augment(batch, np.random.default_rng(1)).target)
    for cut, full in zip(whole.target, batch.target, strict=True):
        windows = (full[start : start + 24] for start in range(7))
        flips = [axes for count in range(4) for axes in product(range(3), repeat=count)]
        assert any(torch.equal(cut, window.flip(list(set(axes)))) for window in windows for axes in flips)


class Oracle(nn.Module):
    """Says what the T1 channel holds, in which the test has written the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, task: Task, batch: Batch) -> Tensor:
        return nn.functional.one_hot(batch.inputs["t1"].long(), 4).movedim(-1, 1)[:, None] * 50.0


def test_an_oracle_scores_full_marks_and_a_mute_the_worst(tmp_path: Path) -> None:
    data = decoded_twin(tmp_path, 4)
    data.samples["t1"][:] = data.truths["tumour"]
    examples = all_examples(data)
    truths, responses = BRATS.truths(examples), BRATS.respond(Oracle(), examples)
    weights = np.ones((1, len(examples)))
    best = {name: value[0] for name, value in SCORERS["segmentation"].scored(truths, responses).values(weights).items()}
    assert best == {name: pytest.approx(0.0 if "hd95" in name else 1.0) for name in best}
    data.samples["t1"][:] = 0
    mute = SCORERS["segmentation"].scored(truths, BRATS.respond(Oracle(), examples)).values(weights)
    assert mute["dice_wt"][0] == 0
    assert mute["hd95_wt"][0] == pytest.approx(np.sqrt(3) * 32)
    has_none = np.mean([truth["voxels"]["et"] == 0 for truth in truths])
    assert mute["dice_et"][0] == pytest.approx(has_none)
    assert mute["hd95_et"][0] == pytest.approx((1 - has_none) * np.sqrt(3) * 32)


def test_the_kind_knows_the_task_s_regions() -> None:
    assert tuple(BRATS.regions) == REGIONS


def test_counts_are_by_grade_and_examples_need_a_sequence(tmp_path: Path) -> None:
    data = decoded_twin(tmp_path, 4)
    assert sum(BRATS.counts(all_examples(data)).values()) == len(data.index)
    for name in MODALITIES:
        data.present[name][1] = False
    assert BRATS.usable(data).tolist() == [number != 1 for number in range(len(data.index))]


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    decoded_twin(tmp_path, 1)
    modalities = grids(32) | {"tumour": MaskModality(name="tumour", size=40)}
    data = decode(DATASET, tmp_path, modalities)
    with pytest.raises(StudyError, match=r"modalities\.t1\.size.*t1 has the grid \(32, 32, 32\)"):
        TaskSet(BRATS, data, np.arange(1))
