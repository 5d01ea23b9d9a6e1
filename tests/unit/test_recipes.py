"""The recipes of injection: what each sets, that a study overrides it, and the mean over clients that belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from medfed.core.errors import StudyError
from medfed.records.schema import StudyFile
from medfed.report.models import injected_title
from medfed.study.algorithms import FedAvg, FedProx
from medfed.study.injection import InjectionSettings, RouterSettings
from medfed.study.study import Study, load_study

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
EXPECTED = {
    "recipe": ("medfed", "paper", "released"),
    "lr": (None, 5e-4, 5e-4),
    "warmup": (None, 0.0, 0.1),
    "router_lr": (1e-3, 5e-4, 5e-4),
    "encoder_lr": (0.0, None, None),
    "public_lr": (1e-4, 0.0, 0.0),
    "teacher_weight": (1.0, 0.0, 0.0),
    "head_tokens": (True, False, False),
    "answer_calibration": (True, False, False),
    "num_epochs": (2, 1, 1),
    "alpha": (16, 8, 8),
    "dropout": (None, 0.1, 0.1),
    "balance_tasks": (True, False, False),
    "balance_classes": (True, False, False),
    "weight_decay": (0.01, 0.01, 1e-4),
    "beta_2": (0.999, 0.999, 0.95),
    "router": (
        RouterSettings(attention="softmax", normalise_embeddings=True, key_dim=64, hidden_dim=64),
        RouterSettings(attention="linear", normalise_embeddings=False, key_dim=64, hidden_dim=64),
        RouterSettings(attention="softmax", normalise_embeddings=False, key_dim=0, hidden_dim=0),
    ),
}
"""Every field in which the recipes differ: medfed, paper, released. docs/method.md has the same table."""


def settings(recipe: str, **given: object) -> InjectionSettings:
    return InjectionSettings.model_validate({"recipe": recipe, **given})


def weighting(*overrides: str) -> object:
    return load_study(DEMO, overrides).resolved()["algorithm"].get("weighting")


def test_the_recipes_differ_in_these_fields_and_in_no_other() -> None:
    medfed, paper, released = (settings(name) for name in EXPECTED["recipe"])
    assert medfed == InjectionSettings()
    for name in InjectionSettings.model_fields:
        found = tuple(getattr(one, name) for one in (medfed, paper, released))
        assert found == EXPECTED.get(name, (getattr(medfed, name),) * 3), name


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_study_overrides_every_field_and_the_factor_of_eq_5_stays_1(recipe: str) -> None:
    given = {"lr": 0.1, "num_epochs": 7, "balance_classes": True, "router": {"normalise_embeddings": True}}
    found = settings(recipe, **given)
    assert (found.lr, found.num_epochs, found.balance_classes) == (0.1, 7, True)
    assert found.router == settings(recipe).router.model_copy(update={"normalise_embeddings": True})
    assert settings(recipe, router=RouterSettings(key_dim=5)).router.attention == settings(recipe).router.attention
    assert settings(recipe, rank=3).alpha == 3
    assert settings(recipe, rank=3, alpha=12).alpha == 12
    assert InjectionSettings.model_validate(found.model_dump()) == found


def test_the_old_name_says_the_new_one() -> None:
    with pytest.raises(ValidationError, match='"default" is called "medfed"'):
        settings("default")
    with pytest.raises(StudyError, match=r'injection: the recipe "default" is called "medfed" now\n.*write'):
        load_study(DEMO, ["injection.recipe=default"])
    with pytest.raises(StudyError, match=r"injection.recipe.*'medfed', 'paper' or 'released'"):
        load_study(DEMO, ["injection.recipe=papers"])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_a_recipe_of_the_paper_takes_the_plain_mean_of_the_clients(name: str) -> None:
    assert weighting(f"algorithm={name}") == "examples"
    for recipe in ("paper", "released"):
        assert weighting(f"algorithm={name}", f"injection.recipe={recipe}") == "clients"
    said = f'algorithm={{ name = "{name}", weighting = "examples" }}'
    assert weighting(said, "injection.recipe=paper") == "examples"


def test_other_algorithms_and_parts_in_python_keep_what_they_say() -> None:
    for algorithm in ("fedadam", "scaffold"):
        plain = load_study(DEMO, [f"algorithm={algorithm}", "client.optimizer=sgd"])
        changed = load_study(DEMO, [f"algorithm={algorithm}", "client.optimizer=sgd", "injection.recipe=paper"])
        assert changed.algorithm == plain.algorithm
    base = load_study(DEMO).resolved() | {"injection": settings("paper")}
    for given, expected in ((FedAvg(), "clients"), (FedProx(mu=0.5, weighting="examples"), "examples")):
        algorithm = Study.model_validate(base | {"algorithm": given}).algorithm
        assert algorithm == given.model_copy(update={"weighting": expected})
    parts = {"local": {"name": "fedprox", "mu": 0.5}, "server": {"name": "mean"}}
    assert (
        Study.model_validate(base | {"algorithm": parts}).resolved()["algorithm"]["server"]["weighting"] == "examples"
    )


def test_a_run_of_an_older_version_is_read_as_it_ran() -> None:
    old = load_study(DEMO).resolved()
    old["injection"] |= {"recipe": "default"}
    del old["algorithm"]["weighting"], old["injection"]["beta_2"]
    assert Study.model_validate(StudyFile(**old).settings) == load_study(DEMO)
    old["injection"] |= {"recipe": "paper"}
    assert Study.model_validate(StudyFile(**old).settings).resolved()["algorithm"]["weighting"] == "examples"


def test_fedkim_is_the_name_of_the_papers_recipes_alone() -> None:
    assert injected_title("medfed", 12) == injected_title(None, None) == "Injected LLM"
    assert [injected_title("paper", count) for count in (12, 1, 0)] == ["FedKIM", "FedPlug_L", "FedPlug"]
    assert injected_title("released", 12) == "FedKIM (released code)"
