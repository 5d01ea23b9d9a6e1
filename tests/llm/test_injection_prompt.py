"""The prompt: one forward pass with a block mask gives what one forward per answer gives, alone or in a mixed batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.injection.encode import encode
from medfed.injection.model import InjectedModel
from medfed.llm.prompt import build_prompt
from medfed.study.injection import Order
from medfed.tasks.classification import Classification
from support.llm_toys import BOTH, IMAGE, WORDY, examples, federated_model, foundation, settings, tokenizer

ORDERS: tuple[Order, ...] = ("modality_first", "task_first")


def built(order: Order = "modality_first") -> InjectedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        injected = InjectedModel(foundation(), {"image": 5, "sound": 7}, settings(order=order)).eval()
        for name, value in injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
    return injected


def likelihoods(injected: InjectedModel, *parts: tuple[Classification, Batch]) -> list[Tensor]:
    groups = encode(federated_model(), parts)
    rows = torch.cat([injected.alpha([task]).expand(len(batch), -1) for task, batch in parts])
    with torch.no_grad(), injected.mixing(rows):
        return injected(groups)


def oracle(injected: InjectedModel, task: Classification, batch: Batch, order: Order) -> Tensor:
    """One plain causal forward per example and answer: no padding, no mask, absent tokens cut out."""
    tokens = encode(federated_model(), [(task, batch)])[0].encoded
    prompt, embed = build_prompt(task, tokenizer(), order), injected.foundation.embed
    rows: list[Tensor] = []
    for i in range(len(batch)):
        seen = [
            injected.projectors[name](tokens[name][i : i + 1])[0] for name in task.modalities if batch.present[name][i]
        ]
        prefix = torch.cat([embed(prompt.before), *seen, embed(prompt.after)])
        rows.append(torch.stack([_answer(injected, task, prefix, answer) for answer in prompt.answers]))
    return torch.stack(rows)


def _answer(injected: InjectedModel, task: Classification, prefix: Tensor, answer: Sequence[int]) -> Tensor:
    whole = torch.cat([prefix, injected.foundation.embed(answer)])
    with torch.no_grad(), injected.mixing(injected.alpha([task])):
        logits = injected.llm(inputs_embeds=whole.unsqueeze(0)).logits[0].log_softmax(-1)
    return sum((logits[len(prefix) - 1 + k, token] for k, token in enumerate(answer)), torch.zeros(()))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("task", [IMAGE, BOTH, WORDY], ids=lambda task: task.name)
@pytest.mark.parametrize("absent", [0.0, 0.5])
def test_one_forward_equals_one_forward_per_answer(task: Classification, order: Order, absent: float) -> None:
    injected, batch = built(order), examples(task, 6, absent=absent).batches(6)[0]
    found, expected = likelihoods(injected, (task, batch))[0], oracle(injected, task, batch, order)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)  # sums of about −100 in float32
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)


def test_an_example_scores_alone_as_it_does_beside_longer_prompts() -> None:
    injected = built()
    parts = [(task, examples(task, 4, absent=0.3).batches(4)[0]) for task in (IMAGE, WORDY, BOTH)]
    together = likelihoods(injected, *parts)
    for part, found in zip(parts, together, strict=True):
        torch.testing.assert_close(found, likelihoods(injected, part)[0], atol=1e-5, rtol=1e-6)


def test_answers_of_one_token_add_nothing_to_the_sequence() -> None:
    assert build_prompt(IMAGE, tokenizer(), "modality_first").appended == ()
    assert build_prompt(WORDY, tokenizer(), "modality_first").appended != ()


def test_the_order_decides_what_precedes_the_modality_tokens() -> None:
    first, last = (build_prompt(IMAGE, tokenizer(), order) for order in ORDERS)
    assert tokenizer().decode(first.before) == "<s>"
    assert tokenizer().decode(first.after) == " Question: Is it round? Answer:"
    assert tokenizer().decode(last.before) == "<s> Question: Is it round?"
    assert tokenizer().decode(last.after) == " Answer:"


def test_answers_end_explicitly_when_one_begins_another() -> None:
    task = IMAGE.model_copy(update={"answers": ("round", "round and red")})
    assert {answer[-1] for answer in build_prompt(task, tokenizer(), "modality_first").answers} == {tokenizer().eos}
    assert tokenizer().eos not in build_prompt(IMAGE, tokenizer(), "modality_first").answers[0]


def test_equal_answers_are_refused() -> None:
    with pytest.raises(StudyError, match="distinct"):
        build_prompt(IMAGE.model_copy(update={"answers": ("yes", "yes")}), tokenizer(), "modality_first")


def test_a_modality_nobody_has_leaves_a_question_without_tokens() -> None:
    injected, batch = built(), examples(IMAGE, 3, absent=1.0).batches(3)[0]
    found = likelihoods(injected, (IMAGE, batch))[0]
    torch.testing.assert_close(found, oracle(injected, IMAGE, batch, "modality_first"), atol=1e-5, rtol=0)
    assert torch.equal(found[0], found[1]), "without tokens every example is the same question"
