"""The BLIP-style model: what is absent is not looked at, decoding is causal and the same in any batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medfed.core.catalog import ENCODERS as REGISTERED
from medfed.core.catalog import MODALITIES, MODELS
from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.modalities.image import ImageModality
from medfed.models.blip import Blip
from medfed.study.models import BlipBaseSpec, BlipSpec
from medfed.tasks.generation import BOS, EOS, NUM_IDS, PAD, ids_of, text_of
from support.twins import ENCODERS, SMALL, cohort, model, task


def batch_of(name: str, size: int = 8) -> Batch:
    client = cohort(name).clients["client-0"][name]
    return client.batch(np.arange(min(size, len(client))))


def without(batch: Batch, modality: str, noise: float = 0.0) -> Batch:
    """Return the batch without a modality; ``noise`` is what stands in its place, which the mask says not to read."""
    inputs = {**batch.inputs, modality: torch.full_like(batch.inputs[modality], noise)}
    present = {**batch.present, modality: torch.zeros(len(batch), dtype=torch.bool)}
    return replace(batch, inputs=inputs, present=present)


def seeded(*names: str, seed: int = 0) -> Blip:
    torch.manual_seed(seed)
    return model(*names).eval()


@pytest.mark.parametrize("name", ["path-vqa", "ehrxqa"])
def test_outputs_have_the_shape_the_loss_wants(name: str) -> None:
    batch, blip = batch_of(name), seeded(name)
    outputs = blip(task(name), batch)
    assert outputs.shape == ((len(batch), 2) if name == "path-vqa" else (len(batch), 24, NUM_IDS))
    task(name).loss(outputs, batch).backward()
    grads = {key: param.grad for key, param in blip.named_parameters()}
    assert {key.split(".")[0] for key, grad in grads.items() if grad is not None and grad.abs().sum() > 0} == {
        "encoders",
        "fusion",
        "heads" if name == "path-vqa" else "decoder",
    }


@pytest.mark.parametrize(("name", "modality"), [("path-vqa", "image"), ("ehrxqa", "image"), ("ehrxqa", "ehr")])
def test_an_absent_modality_is_not_looked_at_and_its_encoder_has_no_gradient(name: str, modality: str) -> None:
    batch, blip = batch_of(name), seeded(name)
    outputs = blip(task(name), without(batch, modality))
    assert torch.equal(outputs, blip(task(name), without(batch, modality, noise=7.0)))
    assert not torch.allclose(outputs, blip(task(name), batch))
    task(name).loss(outputs, batch).backward()
    assert all(param.grad is None for param in blip.encoders[modality].parameters())


def test_one_absent_image_changes_no_other_example() -> None:
    batch, blip = batch_of("path-vqa"), seeded("path-vqa")
    whole = blip(task("path-vqa"), batch)
    present = {**batch.present, "image": torch.arange(len(batch)) != 0}
    partly = blip(task("path-vqa"), replace(batch, present=present))
    torch.testing.assert_close(partly[1:], whole[1:])
    assert not torch.allclose(partly[0], whole[0])


def test_with_nothing_but_the_question_the_answer_is_finite() -> None:
    batch, blip = batch_of("ehrxqa"), seeded("ehrxqa")
    bare = without(without(without(batch, "image"), "ehr"), "question")
    assert torch.isfinite(blip(task("ehrxqa"), bare)).all()


def test_representations_are_zero_where_a_modality_is_absent() -> None:
    batch, blip = batch_of("ehrxqa"), seeded("ehrxqa")
    some = replace(batch, present={**batch.present, "ehr": torch.arange(len(batch)) != 0})
    found = blip.representations(task("ehrxqa"), some)
    assert set(found) == {"image", "ehr", "question"}
    assert not found["ehr"][0].any()
    assert found["ehr"][1:].abs().sum(1).min() > 0
    none = blip.representations(task("ehrxqa"), without(batch, "image"))
    assert none["image"].shape == found["image"].shape
    assert not none["image"].any()


def test_padding_words_are_not_looked_at() -> None:
    print("the same question in a longer frame, with the same positions used")
    batch, blip = batch_of("path-vqa"), seeded("path-vqa")
    fused = blip.fuse(task("path-vqa"), batch).question
    words = (batch.inputs["question"] > 0).sum(1)
    assert fused.there.sum(1).tolist() == (words + 1).tolist()  # and the [Encode] token


def test_the_decoder_is_causal() -> None:
    batch, blip = batch_of("ehrxqa"), seeded("ehrxqa")
    changed = batch.target.clone()
    changed[:, 3] = 99
    before, after = (blip(task("ehrxqa"), replace(batch, target=target)) for target in (batch.target, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_greedy_decoding_takes_the_likeliest_id_after_its_own_ids() -> None:
    print("oracle: teacher forcing on what was written must find every written id likeliest")
    batch, blip = batch_of("ehrxqa"), seeded("ehrxqa", seed=3)
    ids = blip.generate(task("ehrxqa"), batch, 24)
    logits = blip(task("ehrxqa"), replace(batch, target=ids))
    logits[..., [PAD, BOS]] = -torch.inf
    written = ids != PAD
    assert torch.equal(logits.argmax(-1)[written], ids[written])


def test_a_batch_of_one_writes_what_a_batch_of_many_writes() -> None:
    batch, blip = batch_of("ehrxqa", size=16), seeded("ehrxqa")
    optimizer = torch.optim.Adam(blip.parameters(), 3e-3)
    for _ in range(60):  # so that answers differ in length
        optimizer.zero_grad()
        task("ehrxqa").loss(blip(task("ehrxqa"), batch), batch).backward()
        optimizer.step()
    many = blip.generate(task("ehrxqa"), batch, 24)
    ones = torch.cat([blip.generate(task("ehrxqa"), batch.row(number), 24) for number in range(len(batch))])
    assert torch.equal(many, ones)
    ended = [row.index(EOS) for row in many.tolist() if EOS in row]
    assert len(set(ended)) > 1
    for row in many.tolist():
        assert set(row[row.index(EOS) + 1 :]) <= {PAD} if EOS in row else PAD not in row


@pytest.mark.parametrize("text", ["yes", "1.5", "café, naïve", "x" * 23])
def test_ids_give_their_text_back(text: str) -> None:
    ids = ids_of(text, 32)
    assert text_of(ids.tolist()) == text
    assert ids.tolist().count(EOS) == 1
    assert ids_of(text, 3).tolist() == ids.tolist()[:3]


def test_an_ending_inside_a_letter_is_told() -> None:
    assert text_of(ids_of("é", 1).tolist()) == "\N{REPLACEMENT CHARACTER}"
    assert text_of(ids_of("", 4).tolist()) == ""


def test_the_loss_leaves_padding_out() -> None:
    print("uniform logits: log(259) per id, whatever the padding")
    batch = batch_of("ehrxqa")
    uniform = torch.zeros(len(batch), 24, NUM_IDS)
    assert task("ehrxqa").loss(uniform, batch).item() == pytest.approx(np.log(NUM_IDS), rel=1e-5)
    steered = uniform.clone()
    steered[batch.target == PAD] = torch.randn(int((batch.target == PAD).sum()), NUM_IDS)
    assert task("ehrxqa").loss(steered, batch).item() == pytest.approx(np.log(NUM_IDS), rel=1e-5)


def test_one_model_serves_closed_and_generative_tasks() -> None:
    names = ("path-vqa", "ehrxqa")
    blip = seeded(*names)
    assert set(blip.heads) == {"path-vqa"}
    assert blip(task("path-vqa"), batch_of("path-vqa")).shape[1] == 2
    assert blip(task("ehrxqa"), batch_of("ehrxqa")).shape[2] == NUM_IDS
    prefixes = {key.split(".")[0] for key in blip.state_dict()}
    assert prefixes == {"encoders", "fusion", "heads", "decoder"}


def test_a_task_without_a_question_is_refused() -> None:
    with pytest.raises(StudyError, match="needs 'question'"):
        BlipSpec().build(ENCODERS, SMALL, (task("cd"),))


def test_a_model_without_a_decoder_cannot_answer_in_words() -> None:
    examples = cohort("ehrxqa").test["ehrxqa"]
    with pytest.raises(StudyError, match="no decoder"):
        task("ehrxqa").respond(torch.nn.Linear(1, 1), examples)


def test_base_preset_has_the_stated_size() -> None:
    print("ViT-B/16 86 M, twice BERT-base 91 M (85 M and 8192 words), 12 + 12 blocks of 9.45 M, projections 2 M")
    modalities = {**MODALITIES, "image": ImageModality(size=224)}
    vit = REGISTERED["deit-tiny"].model_validate({"dim": 768, "num_heads": 12, "tokens": "all"})
    bert = REGISTERED["bert"].model_validate({})
    encoders = {"image": vit, "question": bert, "ehr": bert}
    with torch.device("meta"):
        blip = MODELS["blip-base"]().build(encoders, modalities, (task("path-vqa"), task("ehrxqa")))
    assert isinstance(BlipBaseSpec(), BlipSpec)
    assert sum(param.numel() for param in blip.parameters()) / 1e6 == pytest.approx(498, abs=1)
