"""What the LLM is taught: labels as they are, or the heads' answers to mixed examples and to each other's questions."""

from __future__ import annotations

import torch

from medfed.core.torch_rng import torch_seeded
from medfed.federated.state import weights_of
from medfed.injection.distil import DistillationBatch, distillation_batches, train_public
from medfed.injection.encode import HEAD, encode, with_head_tokens
from medfed.models.multimodal import MultimodalModel
from support.llm_toys import BOTH, IMAGE, examples, federated_model, public, settings

OTHER = IMAGE.model_copy(update={"name": "other-task", "question": "Is it red?"})


def drawn(
    task_count: int = 2, *, absent: float = 0.0, **changes: object
) -> tuple[MultimodalModel, list[DistillationBatch]]:
    model = federated_model().eval()
    if task_count == 3:
        model.tasks["other-task"] = OTHER
        model.heads["other-task"] = OTHER.head(5)
    batches = [(task, examples(task, 12, absent=absent).batches(12)[0]) for task in (IMAGE, BOTH)]
    groups = encode(model, batches)
    with torch_seeded("lessons"):
        return model, distillation_batches(model, groups, settings(**changes))


def test_without_a_teacher_the_label_is_wanted_and_the_encoder_hears_of_it() -> None:
    _, found = drawn(teacher_weight=0)
    for lesson in found:
        assert torch.equal(lesson.target.argmax(-1), lesson.group.batch.target)
        assert torch.equal(lesson.target.sum(-1), torch.ones(12))
        assert all(tokens.requires_grad for tokens in lesson.group.encoded.values())


def test_a_taught_example_wants_what_its_own_head_says_of_its_tokens_and_no_encoder_hears_of_it() -> None:
    model, found = drawn(teacher_weight=1)
    assert sum(len(lesson.target) for lesson in found) == 24
    for (task, encoded, batch), target in found:
        said = model.tasks[task.name].predict(model.decode(task, encoded, len(batch)))
        torch.testing.assert_close(target, said)
        assert not any(tokens.requires_grad for tokens in encoded.values())


def test_a_mixture_lies_between_two_examples_and_mixes_nothing_that_either_lacks() -> None:
    _, plain = drawn(teacher_weight=1, teacher_mixing=False, absent=0.4)
    _, mixed = drawn(teacher_weight=1, absent=0.4)
    for before, after in zip(plain, mixed, strict=True):
        assert torch.equal(before.group.batch.present["image"], after.group.batch.present["image"])
        for name, tokens in after.group.encoded.items():
            there, base = after.group.batch.present[name], before.group.encoded[name]
            assert torch.equal(tokens[~there], base[~there])
            low, high = base[there].amin(0) - 1e-5, base[there].amax(0) + 1e-5
            assert bool(((tokens[there] >= low) & (tokens[there] <= high)).all())
            assert not torch.equal(tokens[there], base[there])


def test_crossing_asks_other_tasks_of_the_same_modalities_only() -> None:
    _, apart = drawn(3, teacher_weight=1, teacher_crossing=0)
    _, crossed = drawn(3, teacher_weight=1, teacher_crossing=1)
    count = {lesson.group.task.name: len(lesson.target) for lesson in crossed}
    assert "other-task" not in {lesson.group.task.name for lesson in apart}
    assert count["other-task"] + count["image-task"] == 12
    assert count["both-task"] == 12
    assert count["other-task"] > 0


def test_heads_speak_in_the_prompt_of_tasks_with_their_modalities() -> None:
    model = federated_model().eval()
    batch = examples(IMAGE, 6).batches(6)[0]
    group = encode(model, [(IMAGE, batch)])[0]
    said = with_head_tokens(model, group).encoded
    assert set(said) - set(group.encoded) == {f"{HEAD}image-task"}
    logits = model(IMAGE, batch)
    margin = said[f"{HEAD}image-task"][:, 0].diff(dim=-1)
    assert torch.equal(margin > 0, logits.diff(dim=-1) > 0)
    assert float(said[f"{HEAD}image-task"].abs().max()) <= 2


def test_the_public_pass_learns_the_labels_and_depends_on_its_key_alone() -> None:
    sets = public(64)

    def loss_after(rounds: int, seed: int = 0) -> tuple[float, MultimodalModel]:
        model = federated_model()
        for number in range(rounds):
            train_public(model, sets, 1e-2, seed, number)
        losses = [model.tasks[name].loss(model(s.task, s.batches(64)[0]), s.batches(64)[0]) for name, s in sets.items()]
        return float(torch.stack(losses).mean()), model

    before, _ = loss_after(0)
    after, model = loss_after(5)
    assert after < before / 2
    again = weights_of(loss_after(5)[1]).params
    assert all(torch.equal(value, again[name]) for name, value in weights_of(model).params.items())
    assert loss_after(5, seed=1)[0] != after
