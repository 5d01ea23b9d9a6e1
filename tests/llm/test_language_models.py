"""Any native causal LM can be the foundation: each family on a tiny random model, against its own plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from medfed.core.errors import StudyError
from medfed.core.types import Batch
from medfed.injection.encode import Group, encode
from medfed.injection.inject import Injector
from medfed.injection.model import InjectedModel
from medfed.llm.foundation import Foundation, load_foundation
from medfed.llm.targets import projections, target_modules
from medfed.study.foundation import HuggingFaceSettings
from medfed.tasks.classification import Classification
from support.llm_toys import (
    BOTH,
    FAMILIES,
    FLATTENING,
    IMAGE,
    VOCABULARY,
    WINDOW,
    WORDY,
    examples,
    federated_model,
    public,
    settings,
    write_model,
    write_wrapped,
)

EVERY = [*FAMILIES, "wrapped"]
LENGTH = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@cache
def loaded(folders: Path, family: str) -> Foundation:
    folder = folders / family
    path = write_wrapped(folder) if family == "wrapped" else write_model(folder, family)
    return load_foundation(HuggingFaceSettings(dtype="float32"), cache=folders, path=path)


def server(foundation: Foundation, *, moved: bool) -> Injector:
    """An injector; ``moved`` gives its experts something to say."""
    made = Injector(foundation, federated_model(), (IMAGE, BOTH), settings(head_tokens=False), 0)
    if moved:
        give_the_experts_something_to_say(made)
    return made


def give_the_experts_something_to_say(made: Injector) -> None:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, value in made.injected.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)


def summed_gradients(made: Injector, num_steps: int) -> dict[str, Tensor]:
    """The gradients of the first steps, whose examples are those of one large one; the weights stay as they are."""
    found: dict[str, Tensor] = {}
    for group in made._optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0

    def add(*_: object) -> None:
        for name, value in made._params.items():
            if value.grad is not None:
                found[name] = found.get(name, torch.zeros_like(value)) + value.grad

    made._optimizer.register_step_pre_hook(add)
    for _, _record in zip(range(num_steps), made.inject(public(8), 1), strict=False):
        pass
    return found


def prefix(injected: InjectedModel, task: Classification, batch: Batch, row: int) -> Tensor:
    """What stands before the answer, absent modalities cut out."""
    tokens, prompt = encode(federated_model().eval(), [(task, batch)])[0].encoded, injected.prompt(task)
    shown = [n for n in task.modalities if batch.present[n][row]]
    seen = [injected.projectors[n](tokens[n][row : row + 1])[0] for n in shown]
    embed = injected.llm.get_input_embeddings()
    return torch.cat([embed(torch.tensor(prompt.before)), *seen, embed(torch.tensor(prompt.after))])


def said(injected: InjectedModel, task: Classification, before: Tensor, ids: Sequence[int]) -> Tensor:
    """The LLM's logits behind every position, by its own default mask and positions."""
    answer = injected.llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
    with injected.mixing(injected.alpha([task])):
        logits: Tensor = injected.llm(inputs_embeds=torch.cat([before, answer]).unsqueeze(0), use_cache=False).logits[0]
    return logits[len(before) - 1 :]


def likelihood(injected: InjectedModel, task: Classification, before: Tensor, ids: Sequence[int]) -> Tensor:
    logits = said(injected, task, before, ids).log_softmax(-1)
    return logits[range(len(ids)), list(ids)].sum()


def scored(injected: InjectedModel, groups: list[Group]) -> list[Tensor]:
    """The likelihoods of groups that share a forward, each example with its task's α."""
    alpha = injected.alpha([group.task for group in groups])
    with injected.mixing(alpha if len(groups) == 1 else alpha.repeat_interleave(3, 0)):
        return injected(groups)


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_answers_behind_one_prefix_score_as_each_would_alone(folders: Path, family: str) -> None:
    injected = server(loaded(folders, family), moved=True).injected.eval()
    parts = [(task, examples(task, 3, absent=0.3).batches(3)[0]) for task in (WORDY, IMAGE)]
    groups = encode(federated_model().eval(), parts)
    forwards = [[group] for group in groups] if family in FLATTENING else [groups]
    found = [rows for part in forwards for rows in scored(injected, part)]
    for (task, batch), rows in zip(parts, found, strict=True):
        for row, likelihoods in enumerate(rows):
            before = prefix(injected, task, batch, row)
            assert len(before) > WINDOW, "the prompt must be longer than the window"
            expected = [likelihood(injected, task, before, ids) for ids in injected.prompt(task).answers]
            torch.testing.assert_close(likelihoods, torch.stack(expected), atol=2e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_that_of_generate(folders: Path, family: str) -> None:
    made = server(loaded(folders, family), moved=True)
    injected, batch = made.injected.eval(), examples(BOTH, 3, absent=0.3).batches(3)[0]
    group = encode(federated_model().eval(), [(BOTH, batch)])[0]
    with injected.mixing(injected.alpha([BOTH]).expand(3, -1)):
        answers = [one.ids for one in injected.answer_ids([group], LENGTH)[0]]
    for row, answer in enumerate(answers):
        before = prefix(injected, BOTH, batch, row).unsqueeze(0)
        with injected.mixing(injected.alpha([BOTH])):
            ids = injected.llm.generate(
                inputs_embeds=before,
                attention_mask=torch.ones(before.shape[:2], dtype=torch.long),
                max_new_tokens=LENGTH,
                do_sample=False,
            )[0].tolist()
        assert answer, "an empty answer would agree with anything"
        assert answer == ids[: len(answer)]


@pytest.mark.parametrize("family", EVERY)
def test_a_step_moves_every_expert_and_nothing_of_the_foundation(folders: Path, family: str) -> None:
    foundation = loaded(folders, family)
    made, before = server(foundation, moved=True), foundation.fingerprint()
    values = {name: value.detach().clone() for name, value in made.injected.named_parameters()}
    next(iter(made.inject(public(8), 1)))
    moved = {name for name, value in made.injected.named_parameters() if not torch.equal(value, values[name])}
    experts = {name for name in values if "lora_" in name}
    assert len(experts) == 2 * len(projections(foundation.model))
    assert experts <= moved
    assert moved <= {name for name in values if "lora_" in name or "router" in name or "projectors" in name}
    assert foundation.fingerprint() == before


@torch.no_grad()
@pytest.mark.parametrize("family", EVERY)
def test_injection_starts_as_the_identity(folders: Path, family: str) -> None:
    foundation = loaded(folders, family)
    injected = server(foundation, moved=False).injected.eval()
    ids = torch.tensor([foundation.tokenizer.encode("Question: Is it round? Answer: Yes")])
    with injected.mixing(injected.alpha([IMAGE])):
        found = injected.llm(input_ids=ids).logits
    assert torch.equal(found, foundation.model(input_ids=ids).logits)
    shown = foundation.model(inputs_embeds=foundation.embed(ids[0].tolist()).unsqueeze(0)).logits
    assert torch.equal(found, shown), "embedded by the LLM's own module"


@pytest.mark.parametrize("family", EVERY)
def test_experts_sit_on_every_linear_map_of_the_layers(folders: Path, family: str) -> None:
    model = loaded(folders, family).model
    names = projections(model)
    by_layer = {"llama": 7, "phi3": 4, "mixtral": 4, "opt": 6}.get(family, 7)
    print(f"2 layers × {by_layer} = {2 * by_layer}; a bank of experts held as one tensor has no linear maps")
    assert len(names) == 2 * by_layer
    assert not any(word in name for name in names for word in ("embed", "head", "vision", "router", ".gate."))
    ends = target_modules(model)
    found = {n for n, _ in model.named_modules() if any(n == end or n.endswith(f".{end}") for end in ends)}
    assert found == set(names)


@pytest.mark.parametrize("family", sorted(FLATTENING))
def test_a_batch_of_several_tasks_trains_where_layers_flatten_examples_and_tokens(folders: Path, family: str) -> None:
    """The gradients are those of every example taken alone."""
    own: dict[str, Any] = {
        "dropout": 0.0,
        "public_lr": 0,
        "lr": 1e-3,
        "warmup": 0.0,
        "max_grad_norm": None,
        "encoder_lr": 0,
        "head_tokens": False,
    }
    own |= {"teacher_weight": 0.0, "routing_weight": 0.0}
    found = []
    for size in (8, 1):
        made = Injector(loaded(folders, family), federated_model(), (IMAGE, BOTH), settings(**own, batch_size=size), 0)
        give_the_experts_something_to_say(made)
        found.append(summed_gradients(made, 8 // size))
    together, alone = found
    assert any(".router." in name for name in together)
    for name, gradient in together.items():
        torch.testing.assert_close(alone[name] / 8, gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("bloom", {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
        ("falcon", {"alibi": True, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("mpt", {"d_model": 8, "n_layers": 1, "n_heads": 2}),
    ],
)
def test_distances_instead_of_positions_are_refused(folders: Path, kind: str, own: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=VOCABULARY, **own))
    with pytest.raises(StudyError, match=r"(?s)ForCausalLM: .*ALiBi.*rotary or learned positions"):
        Foundation(kind, model, loaded(folders, "llama").tokenizer, {})


def test_layers_that_are_no_attention_are_refused(folders: Path) -> None:
    model = loaded(folders, "llama").shared_copy()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(StudyError, match="linear_attention"):
        Foundation("hybrid", model, loaded(folders, "llama").tokenizer, {})


def test_layers_with_a_window_of_their_own_are_refused(folders: Path) -> None:
    kinds = [[["global", "local"], 1]]
    config = AutoConfig.for_model("gpt_neo", hidden_size=8, num_layers=2, num_heads=2, attention_types=kinds)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(StudyError, match=r"(?s)GPTNeo.*layers of the type 'local'"):
        Foundation("gpt-neo", model, loaded(folders, "llama").tokenizer, {})
