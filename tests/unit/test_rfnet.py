"""RFNet: absent sequences cannot matter, what trains what, its outputs, its size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medfed.core.catalog import MODELS, TASKS
from medfed.core.errors import StudyError
from medfed.core.torch_rng import torch_seeded
from medfed.core.types import Batch
from medfed.models.rfnet import RegionFusion, RFNet, random_subsets
from medfed.study.models import RFNetSpec
from support.native_files import NAMES

BRATS = TASKS["brats"]


def network(**settings: bool | str) -> RFNet:
    with torch_seeded("rfnet"):
        model = RFNetSpec(**settings).build({}, {}, (BRATS,))
    assert isinstance(model, RFNet)
    return model


def volumes(size: int = 2, absent: dict[int, tuple[str, ...]] | None = None, side: int = 16, fill: float = 0) -> Batch:
    """Random volumes; what is absent holds ``fill``."""
    generator = torch.Generator().manual_seed(7)
    inputs = {name: torch.randn(size, side, side, side, generator=generator) for name in NAMES}
    present = {name: torch.ones(size, dtype=torch.bool) for name in NAMES}
    for row, names in (absent or {}).items():
        for name in names:
            inputs[name][row] = fill
            present[name][row] = False
    target = torch.randint(0, 4, (size, side, side, side), generator=generator, dtype=torch.uint8)
    return Batch(inputs, present, target)


@pytest.mark.parametrize("train", [False, True])
def test_what_stands_in_an_absent_channel_does_not_matter(train: bool) -> None:
    model = network(drop_sequences=False).train(train)
    absent = {0: ("t1c",), 1: ("t1", "t2", "flair")}
    zeros, noise = (model(BRATS, volumes(absent=absent, fill=fill)) for fill in (0.0, 9.0))
    assert torch.equal(zeros, noise)
    there = model(BRATS, volumes())
    assert not torch.allclose(there[:, 0], zeros[:, 0])


def test_an_example_does_not_see_the_others_of_its_batch() -> None:
    model = network().eval()
    batch = volumes(3, absent={0: ("t1c",), 2: ("t1", "t2")})
    together = model(BRATS, batch)
    alone = torch.cat([model(BRATS, batch.row(row)) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_outputs_are_log_probabilities_and_zero_where_a_sequence_is_absent() -> None:
    model = network()
    outputs = model.train()(BRATS, volumes(absent={1: ("t1c",)}))
    assert outputs.shape == (2, 1 + 3 + 4, 4, 16, 16, 16)  # fused, three levels' maps, four sequences alone
    total = outputs.exp().sum(2)
    alone = total[:, 4:]
    assert not outputs[1, 5].any()
    torch.testing.assert_close(total[:, :4], torch.ones_like(total[:, :4]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone[:, [0, 2, 3]], torch.ones_like(alone[:, [0, 2, 3]]), rtol=1e-4, atol=1e-4)
    assert model.eval()(BRATS, volumes()).shape == (2, 1, 4, 16, 16, 16)


def test_an_absent_sequence_s_encoder_gets_no_gradient_and_all_else_does() -> None:
    model = network(drop_sequences=False)
    batch = volumes(absent={0: ("t1c",), 1: ("t1c",)})
    BRATS.loss(model(BRATS, batch), batch).backward()
    for name, param in model.named_parameters():
        moved = param.grad is not None and bool(param.grad.abs().sum() > 0)
        assert moved != name.startswith("encoders.t1c."), name


def test_the_fused_output_does_not_train_through_region_maps() -> None:
    """The maps guide the fusion but learn from the truth alone (they are detached)."""
    model = network(drop_sequences=False)
    model(BRATS, volumes())[:, 0].square().mean().backward()
    moved = {name for name, param in model.named_parameters() if param.grad is not None and bool(param.grad.any())}
    assert not any(name.startswith("fused.maps.") for name in moved)
    assert any(name.startswith("fused.fusions.") for name in moved)


def test_training_fuses_random_subsets_of_what_is_there() -> None:
    batch = volumes(64, absent=dict.fromkeys(range(64), ("t2",)), side=16)
    present = torch.stack(list(batch.present.values()), 1)
    with torch_seeded("drop"):
        kept = random_subsets(present)
    assert not (kept & ~present).any()
    assert kept.any(1).all()
    assert len({tuple(row) for row in kept.tolist()}) == 7  # every subset of three
    with torch_seeded("drop"):
        assert torch.equal(kept, random_subsets(present))


def test_region_fusion_equals_its_definition() -> None:
    fusion = RegionFusion(4, 4, 3, hidden=8)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 4, 4, 5, 6, 7, generator=generator)
    maps = torch.rand(2, 3, 5, 6, 7, generator=generator)
    regions = []
    for region in range(3):
        inside = features * maps[:, None, region, None]
        share = maps[:, region].mean((1, 2, 3)) + 1e-7
        told = torch.cat([inside.mean((3, 4, 5)).flatten(1) / share[:, None], share[:, None]], 1)
        weights: Tensor = fusion.weigh[region](told).sigmoid()
        regions.append((inside * weights[:, :, None, None, None, None]).sum(1))
    expected = torch.cat((fusion.fuse(torch.cat(regions, 1)), fusion.shortcut(features.flatten(1, 2))), 1)
    torch.testing.assert_close(fusion(features, maps), expected, rtol=1e-4, atol=1e-4)


def test_representations_are_zero_where_absent_and_differ_by_example() -> None:
    found = network().eval().representations(BRATS, volumes(absent={1: ("t1",)}))
    assert list(found) == list(NAMES)
    assert {value.shape for value in found.values()} == {(2, 128)}
    assert not found["t1"][1].any()
    assert found["t1"][0].any()
    similarity = torch.cosine_similarity(found["t2"][0], found["t2"][1], 0)
    assert similarity < 0.999


def test_the_full_preset_has_the_published_size() -> None:
    """8.98 M parameters in the authors' release; ours has no bias before a normalisation."""
    count = sum(param.numel() for param in network(preset="full").parameters())
    assert 8.9e6 < count < 9.0e6


def test_odd_grids_are_segmented() -> None:
    batch = volumes(1, side=16)
    odd = {name: value[:, :15, :13, :11] for name, value in batch.inputs.items()}
    said = network().eval()(BRATS, Batch(odd, batch.present, batch.target[:, :15, :13, :11]))
    assert said.shape == (1, 1, 4, 15, 13, 11)


def test_bfloat16_gives_nearly_the_loss_of_float32() -> None:
    model, batch = network(drop_sequences=False), volumes(absent={0: ("t1",)})
    exact = BRATS.loss(model(BRATS, batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = BRATS.loss(model(BRATS, batch), batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_it_is_registered_brings_its_encoders_and_refuses_other_tasks() -> None:
    assert MODELS["rfnet"] is RFNetSpec
    assert not RFNetSpec.needs_encoders
    for tasks in ((TASKS["cd"],), (BRATS, TASKS["cd"]), ()):
        with pytest.raises(StudyError, match="rfnet segments, one task at a time"):
            RFNetSpec().build({}, {}, tasks)
