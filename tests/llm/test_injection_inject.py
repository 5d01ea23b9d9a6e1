"""Injection: the foundation stays frozen, resuming is exact, chance comes from the key, every switch does its work."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from medfed.core.errors import RunError, StudyError
from medfed.federated.state import weights_of
from medfed.injection.batching import epoch_order
from medfed.injection.experts import RoutedLoraModel
from medfed.injection.inject import Injector
from medfed.llm.foundation import Foundation, load_foundation
from medfed.models.multimodal import MultimodalModel
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.injection import InjectionSettings
from support.llm_toys import (
    BOTH,
    IMAGE,
    WORDY,
    examples,
    federated_model,
    foundation,
    injector,
    language_model,
    public,
    settings,
    tokenizer,
    write_model,
)

TASKS = (IMAGE, BOTH)


def trained(rounds: int = 1, seed: int = 0, **changes: object) -> tuple[Injector, MultimodalModel]:
    model = federated_model()
    server = Injector(foundation(), model, TASKS, settings(**changes), seed)
    for number in range(1, rounds + 1):
        list(server.inject(public(), number))
    return server, model


def everything(server: Injector, model: MultimodalModel) -> dict[str, Tensor]:
    return {**server.state(), **weights_of(model).params}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_foundation_is_bit_identical_after_a_round_and_the_encoders_are_not() -> None:
    base, model = foundation(), federated_model()
    before, encoders = base.fingerprint(), weights_of(model).params
    live = dict(model.named_parameters())
    server = Injector(base, model, TASKS, settings(public_lr=0), 0)
    list(server.inject(public(), 1))
    assert base.fingerprint() == before
    after = weights_of(model).params
    for name, value in live.items():
        assert value is dict(model.named_parameters())[name], "encoders keep their identity"
        assert torch.equal(encoders[name], after[name]) is name.startswith("heads."), name


def test_before_training_the_injected_llm_is_the_foundation() -> None:
    batch = examples(BOTH, 5).batches(5)[0]
    with_experts, without = injector(num_experts=3), injector(num_experts=0)
    without.injected.projectors.load_state_dict(with_experts.injected.projectors.state_dict())
    assert torch.equal(with_experts.score(BOTH, batch), without.score(BOTH, batch))


def test_injection_learns_what_the_samples_show() -> None:
    server, _ = trained(rounds=4, lr=2e-2, router_lr=1e-3, teacher_weight=0, head_tokens=False)
    for task in TASKS:
        held = examples(task, 60)
        accuracy = float((server.score(task, held.batches(60)[0]).argmax(-1) == held.targets).float().mean())
        assert accuracy > 0.9, f"{task.name}: {accuracy:.2f}"


@pytest.mark.parametrize("keep", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(keep: bool) -> None:
    whole, model = trained(rounds=2, keep_optimizer_state=keep)
    first, first_model = trained(rounds=1, keep_optimizer_state=keep)
    resumed_model = federated_model()
    resumed = Injector(foundation(), resumed_model, TASKS, settings(keep_optimizer_state=keep), 0)
    resumed_model.load_state_dict(first_model.state_dict())
    resumed.load_state(first.state())
    torch.manual_seed(123)
    list(resumed.inject(public(), 2))
    assert same(everything(resumed, resumed_model), everything(whole, model))


def test_chance_comes_from_the_key_and_leaves_global_chance_alone() -> None:
    expected, (server, model) = everything(*trained()), (injector(), None)
    del model
    torch.manual_seed(7)
    before = torch.get_rng_state()
    steps = server.inject(public(), 1)
    next(steps)
    assert torch.equal(torch.get_rng_state(), before), "a step must not move the global stream"
    torch.rand(3)
    list(steps)
    assert same(server.state(), {name: expected[name] for name in server.state()})


def test_scoring_between_steps_changes_nothing() -> None:
    expected = trained()[0].state()
    server = injector()
    for _ in server.inject(public(), 1):
        server.score(BOTH, examples(BOTH, 3).batches(3)[0])
    assert same(server.state(), expected)


def scores_after_two_rounds(**changes: object) -> Tensor:
    if not changes:
        return _unchanged()
    return trained(rounds=2, **changes)[0].score(BOTH, examples(BOTH, 6).batches(6)[0])


@cache
def _unchanged() -> Tensor:
    return trained(rounds=2)[0].score(BOTH, examples(BOTH, 6).batches(6)[0])


CHANGES = {
    "recipe": "paper",
    "public_lr": 1e-2,
    "teacher_weight": 1.0,
    "teacher_mixing": False,
    "head_tokens": False,
    "align_rounds": 1,
    "lr": 5e-3,
    "warmup": 0.5,
    "router_lr": 5e-3,
    "encoder_lr": 1e-2,
    "num_epochs": 2,
    "batch_size": 6,
    "num_experts": 4,
    "rank": 3,
    "alpha": 32,
    "dropout": 0.4,
    "projector": "mlp",
    "router": {"attention": "linear"},
    "routing_weight": 0.5,
    "order": "task_first",
    "balance_tasks": False,
    "balance_classes": False,
    "keep_optimizer_state": False,
    "weight_decay": 0.5,
    "beta_2": 0.5,
    "max_grad_norm": 0.01,
    "rehearsal": {"weight": 1.0},
    "kl_weight": 1.0,
}


def test_every_setting_is_exercised() -> None:
    assert set(CHANGES) | {"device", "teacher_crossing", "answer_calibration", "schedule"} == set(
        type(settings()).model_fields
    )


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_result(name: str) -> None:
    assert not torch.equal(scores_after_two_rounds(), scores_after_two_rounds(**{name: CHANGES[name]}))


def test_another_seed_is_another_run() -> None:
    assert not same(trained(seed=0)[0].state(), trained(seed=1)[0].state())


def test_encoder_lr_zero_leaves_the_encoders_as_aggregated() -> None:
    _, model = trained(encoder_lr=0, public_lr=0)
    assert same(weights_of(model).params, weights_of(federated_model()).params)


@pytest.mark.parametrize(("num_experts", "kind"), [(0, None), (1, PeftModel), (3, PeftModel)])
def test_fedplug_fedplug_l_and_fedkim_are_one_switch(num_experts: int, kind: type | None) -> None:
    server, _ = trained(num_experts=num_experts)
    adapted, record = server.injected.adapted, server.routing_record(TASKS)
    assert (adapted is None) if kind is None else isinstance(adapted, kind)
    assert (server.injected.routed is not None) == (num_experts > 1)
    assert len(record["alpha"]) == (2 if num_experts > 1 else 0)
    assert server.routing(TASKS).shape == (2, num_experts)
    if num_experts:
        torch.testing.assert_close(server.routing(TASKS).sum(-1), torch.ones(2))


def test_scores_are_probabilities_for_trained_and_untrained_tasks_with_modalities_missing() -> None:
    server, _ = trained()
    for task in (IMAGE, BOTH, WORDY):
        batch = examples(task, 7, absent=0.5).batches(7)[0]
        found = server.score(task, batch)
        assert found.shape == (7, len(task.answers))
        torch.testing.assert_close(found.sum(-1), torch.ones(7))
        assert torch.equal(found, server.score(task, batch)), "scoring is deterministic"


def test_an_absent_modality_gives_its_encoder_no_gradient() -> None:
    model = federated_model()
    server = Injector(foundation(), model, TASKS, settings(weight_decay=0.0, public_lr=0), 0)
    before = weights_of(model).params
    list(server.inject(public(absent=1.0), 1))
    assert same(weights_of(model).params, before)


def test_the_router_hears_of_the_loss() -> None:
    server, _ = trained(rounds=2)
    routed = server.injected.routed
    assert isinstance(routed, RoutedLoraModel)
    fresh = injector().injected.routed
    assert isinstance(fresh, RoutedLoraModel)
    assert not torch.equal(routed.router["default"].query.weight, fresh.router["default"].query.weight)


def test_rewarded_the_router_tells_tasks_apart_and_unrewarded_it_does_not() -> None:
    distance = {
        weight: trained(rounds=5, routing_weight=weight, router_lr=1e-2)[0].routing_record(TASKS)["total_variation"]
        for weight in (0.0, 0.5)
    }
    print(f"total variation between the two tasks by routing_weight: {distance}")
    assert distance[0.5] > 0.5 > 10 * distance[0.0]


def test_calibration_centres_an_untrained_question_keeps_the_order_and_leaves_trained_ones_alone() -> None:
    server, _ = trained()
    new = IMAGE.model_copy(update={"name": "new", "question": "Is it warm?"})
    batch = examples(IMAGE, 20).batches(20)[0]
    before, known = server.score(new, batch), server.score(IMAGE, batch)
    server.calibrate([new], public())
    after = server.score(new, batch)
    assert torch.equal(before[:, 1].argsort(), after[:, 1].argsort())
    pool = torch.cat([server.score(new, part) for part in public()["image-task"].batches(8)])
    torch.testing.assert_close(pool.logit().mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    assert not torch.equal(before, after)
    assert torch.equal(known, server.score(IMAGE, batch))


def test_a_task_without_an_encoder_is_refused_before_training() -> None:
    odd = IMAGE.model_copy(update={"name": "odd", "modalities": ("smell",)})
    with pytest.raises(StudyError, match="smell"):
        Injector(foundation(), federated_model(), (*TASKS, odd), settings(), 0)


def test_a_state_of_other_settings_is_refused() -> None:
    with pytest.raises(RunError, match="same settings"):
        injector(rank=3).load_state(injector(rank=2).state())
    with pytest.raises(RunError, match="same settings"):
        injector(num_experts=0).load_state(injector().state())


def test_no_public_examples_and_a_loss_that_is_not_finite_stop_the_run() -> None:
    with pytest.raises(RunError, match="no public examples"):
        list(injector().inject({}, 1))
    server = injector()
    with torch.no_grad():
        server.injected.projectors["image"].layers[0].bias.fill_(float("nan"))
    with pytest.raises(RunError, match=r"round 4, step 0"):
        list(server.inject(public(), 4))


def test_the_saved_folder_holds_adapter_projectors_and_settings(tmp_path: Path) -> None:
    trained()[0].save(tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"adapter/adapter_model.safetensors", "projectors.safetensors", "injection.json"} <= names
    assert str(tmp_path) not in (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")


def test_an_epoch_is_balanced_over_tasks_batches_and_classes() -> None:
    targets = {"a": np.array([0] * 18 + [1] * 2), "b": np.array([0, 1, 1, 1])}
    order = epoch_order(targets, np.random.default_rng(0))
    print("24 examples, 2 tasks: 12 of each; 12 of a task with 2 classes: 6 of each")
    assert len(order) == 24
    for task, values in targets.items():
        drawn = [values[draw.position] for draw in order if draw.task == task]
        assert np.bincount(drawn).tolist() == [6, 6]
    for start in range(0, 24, 4):
        assert [draw.task for draw in order[start : start + 4]].count("a") == 2


def test_an_unbalanced_epoch_is_every_example_once() -> None:
    targets = {"a": np.array([0] * 18 + [1] * 2), "b": np.array([0, 1, 1, 1])}
    order = epoch_order(targets, np.random.default_rng(0), balance_tasks=False, balance_classes=False)
    assert sorted(order) == [("a", position) for position in range(20)] + [("b", position) for position in range(4)]


def from_disk(width: int = 32) -> Foundation:
    """The random Llama as if a folder had held it."""
    return Foundation("toy", language_model(hidden_size=width), tokenizer(), {"kind": "huggingface"})


def test_the_rate_goes_by_the_size_of_an_llm_from_disk_alone() -> None:
    plain = InjectionSettings()
    print("1e-3 · √(128 / 1536) = 2.887e-4; √(128 / 512) = 1/2")
    assert plain.for_llm(1536, from_disk=True).lr == pytest.approx(2.887e-4, rel=1e-3)
    assert plain.for_llm(512, from_disk=True).lr == pytest.approx(5e-4)
    disk = plain.for_llm(512, from_disk=True)
    assert (disk.warmup, disk.dropout) == (0.05, 0.0)
    tiny = plain.for_llm(1536, from_disk=False)
    assert (tiny.lr, tiny.warmup, tiny.dropout) == (1e-3, 0.0, 0.1)
    said = InjectionSettings(lr=2e-3, warmup=0.5, dropout=0.2)
    assert said.for_llm(1536, from_disk=True) == said
    paper = InjectionSettings.model_validate({"recipe": "paper"}).for_llm(1536, from_disk=True)
    assert (paper.lr, paper.warmup, paper.dropout) == (5e-4, 0.0, 0.1)
    assert plain.max_grad_norm == 1.0


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma"])
def test_an_llm_of_a_family_gets_the_rate_of_its_width(family: str, tmp_path: Path) -> None:
    base = load_foundation(HuggingFaceSettings(dtype="float32"), cache=tmp_path, path=write_model(tmp_path, family))
    server = Injector(base, federated_model(), TASKS, settings(lr=None, warmup=None, router_lr=1e-4), 0)
    assert {group["lr"] for group in server._optimizer.param_groups} == {1e-3 * (128 / 32) ** 0.5, 1e-4}


def test_rates_rise_over_the_first_steps_of_all_rounds() -> None:
    print("2 rounds of 6 steps, a third of them warm up: 4 steps, so 1/4, 2/4, 3/4, 1, 1, 1 and then 1 in round 2")
    server = Injector(from_disk(), federated_model(), TASKS, settings(lr=1e-3, router_lr=4e-4, warmup=1 / 3), 0)
    rates: list[list[float]] = []
    step = server._optimizer.step

    def noted(*given: object) -> None:
        rates.append(sorted(group["lr"] for group in server._optimizer.param_groups))
        step(*given)

    server._optimizer.step = noted  # type: ignore[method-assign]
    for number in (1, 2):
        list(server.inject(public(), number, 2))
    shares = [0.25, 0.5, 0.75, *[1.0] * 9]
    assert np.allclose(rates, [[4e-4 * share, 1e-3 * share] for share in shares])


def test_without_a_warm_up_no_bit_changes() -> None:
    first, second = (Injector(foundation(), federated_model(), TASKS, settings(), 0) for _ in range(2))
    list(first.inject(public(), 1))
    list(second.inject(public(), 1, 10))
    assert same(first.state(), second.state())


def test_one_injection_leaves_no_round_to_align_in() -> None:
    with pytest.raises(ValueError, match="align_rounds"):
        settings(schedule="last", align_rounds=1)
