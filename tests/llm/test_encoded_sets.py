"""Encoder outputs that are kept change no number; they are bounded, and gone once the encoders change."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from medfed.injection import inject as injecting
from medfed.injection.batching import Draw
from medfed.injection.encode import LIMIT_BYTES, TokenCache, encode, encode_ahead
from medfed.injection.inject import Injector
from medfed.models.multimodal import MultimodalModel
from medfed.tasks.base import TaskSet
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, foundation, public, settings

FROZEN = {"encoder_lr": 0, "num_epochs": 2}


def counted(model: MultimodalModel, calls: list[int]) -> MultimodalModel:
    """Let ``calls`` know how many samples every run of an encoder reads."""
    for encoder in model.encoders.values():
        encoder.register_forward_hook(lambda _, inputs, out: calls.append(len(inputs[0])))
    return model


def rounds(model: MultimodalModel, numbers: tuple[int, ...] = (1,), **changes: object) -> Injector:
    server = Injector(foundation(), model, (IMAGE, BOTH), settings(**(FROZEN | changes)), 0)
    for number in numbers:
        list(server.inject(public(absent=0.3), number))
    return server


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_encoding_ahead_changes_no_number_and_encodes_each_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[int] = []
    server = rounds(counted(federated_model(), ahead), public_lr=0)
    in_steps: list[int] = []
    monkeypatch.setattr(injecting, "encode_ahead", lambda *_: None)
    plain = rounds(counted(federated_model(), in_steps), public_lr=0)
    close(
        {name: value for name, value in plain.state().items() if name.startswith("params/")},
        {name: value for name, value in server.state().items() if name.startswith("params/")},
    )
    there = sum(
        int(held.data.present[name].sum()) for held in public(absent=0.3).values() for name in held.data.present
    )
    print(f"{there} samples present; encoded ahead {sum(ahead)}, in the steps of two epochs {sum(in_steps)}")
    assert sum(ahead) <= there < sum(in_steps)


def test_too_many_tokens_are_encoded_in_the_steps() -> None:
    sets, model = public(), federated_model().eval()
    draws = [Draw(task, position) for task in sets for position in range(24)]
    one = (2 * 5 + 2 * 5 + 2 * 7) * 4
    print(f"image twice and sound once, two tokens each: 24 x {one} bytes")
    assert encode_ahead(model, sets, draws, "cpu", 24 * one) is not None
    assert encode_ahead(model, sets, draws, "cpu", 24 * one - 1) is None


def test_what_is_drawn_is_what_the_encoders_say_of_it() -> None:
    sets, model = public(absent=0.4), federated_model().eval()
    draws = [Draw("both-task", 5), Draw("image-task", 3), Draw("both-task", 2), Draw("both-task", 5)]
    kept = encode_ahead(model, sets, draws, "cpu")
    assert kept is not None
    both, image = kept(draws)
    for group, positions in ((both, [5, 2, 5]), (image, [3])):
        for row, position in enumerate(positions):
            batch = sets[group.task.name].batch(torch.tensor([position]).numpy())
            expected = encode(model, [(group.task, batch)])[0].encoded
            for name in group.task.modalities:
                assert bool(group.batch.present[name][row]) == bool(batch.present[name][0])
                if batch.present[name][0]:
                    torch.testing.assert_close(group.encoded[name][row], expected[name][0])
            assert group.batch.target[row] == batch.target[0]


def test_resuming_with_frozen_encoders_is_exact_bit_for_bit() -> None:
    whole_model, first_model, resumed_model = federated_model(), federated_model(), federated_model()
    whole, first = rounds(whole_model, (1, 2)), rounds(first_model)
    resumed = Injector(foundation(), resumed_model, (IMAGE, BOTH), settings(**FROZEN), 0)
    resumed_model.load_state_dict(first_model.state_dict())
    resumed.load_state(first.state())
    list(resumed.inject(public(absent=0.3), 2))
    expected = whole.state()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state().items())


def asked_twice(task_sets: list[TaskSet], limit: int = LIMIT_BYTES) -> tuple[list[Tensor], list[int]]:
    calls: list[int] = []
    model = counted(federated_model(), calls)
    server = Injector(foundation(), model, (IMAGE, BOTH), settings(), 0)
    server._tokens = TokenCache(model, limit)
    with torch.inference_mode():
        return [server.score_set(held, 64) for held in task_sets], calls


def same_rows() -> list[TaskSet]:
    """Two tasks of the same examples."""
    first = examples(BOTH, 70, absent=0.3)
    return [first, TaskSet(WORDY, first.data, first.rows)]


def test_tasks_of_the_same_examples_share_encoder_outputs_and_their_scores_keep_every_bit() -> None:
    shared, calls = asked_twice(same_rows())
    alone = [asked_twice([held])[0][0] for held in same_rows()]
    forgetful, more = asked_twice(same_rows(), limit=0)
    assert sum(more) == 2 * sum(calls)
    for kept, own, dropped in zip(shared, alone, forgetful, strict=True):
        assert torch.equal(kept, own)
        assert torch.equal(kept, dropped)


def test_a_set_scores_as_its_batches_do() -> None:
    server = Injector(foundation(), federated_model(), (IMAGE, BOTH), settings(), 0)
    held = examples(BOTH, 20, absent=0.3)
    apart = torch.cat([server.score(BOTH, batch) for batch in held.batches(8)])
    torch.testing.assert_close(server.score_set(held, 8), apart, atol=1e-6, rtol=0)


def test_changed_encoders_are_asked_again() -> None:
    model = federated_model()
    server, held = Injector(foundation(), model, (IMAGE, BOTH), settings(), 0), examples(IMAGE, 9)
    before = server.score_set(held, 8)
    with torch.no_grad():
        model.encoders["image"].maps.weight.data.mul_(-2)  # .data: what autograd's own counters do not see
    after = server.score_set(held, 8)
    assert not torch.equal(before, after)
    fresh = Injector(foundation(), model, (IMAGE, BOTH), settings(), 0)
    assert torch.equal(after, fresh.score_set(held, 8))
