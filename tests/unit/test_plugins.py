"""Plugins: parts from a file, a module, an installed package or a notebook, and what they do to a run's identity."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from medfed.core import plugins
from medfed.core.catalog import ALGORITHMS, DATASETS, ENCODERS, TASKS, register
from medfed.core.code import definition_of
from medfed.core.errors import DataError, MedfedError, PluginError, StudyError
from medfed.core.progress import Reporter
from medfed.datasets.base import Card, Dataset
from medfed.federated.algorithm import Algorithm
from medfed.study.algorithms import Server
from medfed.study.data import TwinSpec
from medfed.study.parts import EncoderSpec
from medfed.study.study import Study, study_of
from medfed.tasks.classification import Classification
from medfed.twins.writing import SERVER, cached_twins, twin_place
from support.registries import untouched

TASK = """
from medfed.core.catalog import register
from medfed.tasks.classification import Classification

register(Classification(
    name="films-finding", title="{title}", dataset="chexpert", target="pleural_effusion", modalities=("image",),
    question="Is there a finding?", task_description="Look.", modality_description="A film.",
))
"""
SETTINGS = {"name": "s", "algorithm": "fedavg", "encoders": {"image": "vit-mini"}}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with untouched():
        yield


def task(name: str, **fields: object) -> Classification:
    given = {
        "title": name,
        "dataset": "chexpert",
        "target": "pleural_effusion",
        "modalities": ("image",),
        "question": "Is there a finding?",
        "task_description": "Look.",
        "modality_description": "A film.",
    }
    return Classification.model_validate({"name": name, **given, **fields})


def plugin_file(folder: Path, title: str = "One") -> Path:
    path = folder / "my_task.py"
    path.write_text(TASK.format(title=title), encoding="utf-8")
    return path


def installed(folder: Path, name: str, source: str, entry: str) -> None:
    """Lay a distribution with one module and one entry point into ``folder``, as an installer does."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[medfed.plugins]\n{name} = {entry}\n", encoding="utf-8")


def session(source: str, **names: object) -> ModuleType:
    """Execute ``source`` as a notebook's cell does: in ``__main__``, without a file."""
    module = ModuleType("__main__")
    vars(module).update(names)
    exec(compile(source, "<cell>", "exec"), vars(module))  # noqa: S102
    return module


def test_a_file_registers_its_parts_and_its_content_is_known(tmp_path: Path) -> None:
    path = plugin_file(tmp_path)
    assert "films-finding" not in TASKS
    plugin = plugins.load(path)
    assert plugin == plugins.Plugin(
        "my_task.py", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", str(path.resolve())
    )
    assert TASKS.origin("films-finding") == plugin
    assert TASKS.origin("cd") is None
    assert plugins.load(str(path)) == plugin
    assert list(TASKS)[-1] == "films-finding"


def test_a_file_that_changed_is_executed_anew_and_its_parts_take_their_places(tmp_path: Path) -> None:
    plugins.load(plugin_file(tmp_path))
    again = plugins.load(plugin_file(tmp_path, title="Two"))
    assert TASKS["films-finding"].title == "Two"
    assert TASKS.origin("films-finding") == again
    assert again in plugins.loaded()
    assert len([plugin for plugin in plugins.loaded() if plugin.source == again.source]) == 1


def test_two_plugins_cannot_share_a_name(tmp_path: Path) -> None:
    plugins.load(plugin_file(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(StudyError, match="'films-finding' is registered twice"):
        plugins.load(plugin_file(tmp_path / "other"))
    assert len(plugins.loaded()) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = x / 0\n", "the plugin fails: ZeroDivisionError: division by zero"),
        ("x = (\n", "the plugin fails: SyntaxError"),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(PluginError, match=message) as caught:
        plugins.load(path)
    assert str(caught.value.where) == f"{path.resolve()}, line {2 if 'y' in source else 1}"
    assert plugins.loaded() == ()
    assert not [name for name in sys.modules if name.startswith("medfed_plugin_broken")]


@pytest.mark.parametrize("reference", ["absent.py", "no_such_module_anywhere", "no_such.module"])
def test_an_absent_plugin_is_told_with_the_next_step(reference: str) -> None:
    with pytest.raises(PluginError) as caught:
        plugins.load(reference)
    assert caught.value.hint
    assert "FILE" in caught.value.hint


def test_a_module_is_known_by_all_files_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "acme_parts"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "tasks.py").write_text(TASK.format(title="Acme"), encoding="utf-8")
    (package / "help.py").write_text("A = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = plugins.examine("acme_parts.tasks")
    assert "acme_parts" not in sys.modules, "nothing is executed to know the content"
    (package / "help.py").write_text("A = 2\n", encoding="utf-8")
    plugin = plugins.load("acme_parts.tasks")
    assert plugin.sha256 != before.sha256
    assert TASKS.origin("films-finding") == plugin


def test_code_that_is_imported_is_a_plugin_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin_file(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("my_task")
    assert TASKS.origin("films-finding") == plugins.examine("my_task")
    assert plugins.loaded() == (plugins.examine("my_task"),)


@pytest.mark.parametrize("entry", ["acme_one", "acme_one:begin"])
def test_an_installed_plugin_is_loaded_when_a_name_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    called = TASK.format(title="Acme").replace("\nregister(", "\nMADE = (").replace("))\n", "))\n", 1)
    begin = f"{called}\ndef begin():\n    register(MADE)\n"
    installed(tmp_path, "acme_one", begin if ":" in entry else TASK.format(title="Acme"), entry)
    monkeypatch.syspath_prepend(tmp_path)
    assert TASKS["cd"].name == "cd"
    assert "acme_one" not in sys.modules, "a name of the package loads nothing"
    assert TASKS["films-finding"].title == "Acme"
    assert TASKS.origin("films-finding") == plugins.examine("acme_one")


def test_an_installed_plugin_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "acme_broken", "raise RuntimeError('no licence')\n", "acme_broken")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"acme_broken: the plugin fails: RuntimeError: no licence"):
        TASKS.lookup("nothing")


def test_only_allowed_content_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "acme_two", TASK.format(title="Acme"), "acme_two")
    monkeypatch.syspath_prepend(tmp_path)
    trace = tmp_path / "executed"
    path = tmp_path / "mine.py"
    path.write_text(f"open({str(trace)!r}, 'w').close()\n", encoding="utf-8")
    plugins.allow_only([])
    with pytest.raises(PluginError, match="not allowed here") as caught:
        plugins.load(path)
    assert plugins.examine(path).sha256 in str(caught.value.hint)
    assert not trace.exists()
    with pytest.raises(StudyError, match=r"not allowed here: the plugin acme_two \(sha256:"):
        TASKS.lookup("films-finding")
    assert "acme_two" not in sys.modules
    plugins.allow_only([plugins.examine(path).sha256])
    plugins.load(path)
    assert trace.exists()


def test_a_study_without_plugins_keeps_its_identity_and_one_with_them_has_their_content(tmp_path: Path) -> None:
    plain = study_of({**SETTINGS, "train": ["lod"]}, "test")
    assert plain.extensions == ()
    assert "plugins" not in plain.resolved()
    plugins.load(plugin_file(tmp_path))
    assert study_of({**SETTINGS, "train": ["lod"]}, "test").hash() == plain.hash()
    study = study_of({**SETTINGS, "train": ["films-finding"]}, "test")
    plugin = plugins.examine(tmp_path / "my_task.py")
    assert study.extensions == (plugin,)
    assert study.resolved()["plugins"] == [plugin.sha256]
    recorded, before = study.resolved(), study.hash()
    assert study_of(recorded, "test").hash() == before
    with (tmp_path / "my_task.py").open("a", encoding="utf-8") as file:
        file.write("# another content\n")
    plugins.load(tmp_path / "my_task.py")
    assert study_of({**SETTINGS, "train": ["films-finding"]}, "test").hash() != before
    with pytest.raises(StudyError, match=r"a plugin is not loaded, or has another content") as caught:
        study_of(recorded, "study.json")
    assert "--plugin" in str(caught.value.hint)


def test_parts_of_a_notebook_are_known_by_their_definition() -> None:
    head = "LIMIT = 3\ndef helper(x): return x + LIMIT\n"
    source = f"{head}class Mine:\n    def load(self, x): return helper(x)\nclass Other: pass\n"
    first = definition_of(session(source).Mine)
    assert definition_of(session("\n\n" + source).Mine) == first
    assert definition_of(session(source.replace("class Other: pass", "class Other: a = 1")).Mine) == first
    for old, new in (("LIMIT = 3", "LIMIT = 4"), ("x + LIMIT", "x - LIMIT"), ("helper(x)\n", "helper(x) + 1\n")):
        assert definition_of(session(source.replace(old, new)).Mine) != first


def test_a_notebooks_task_changes_the_identity_of_the_run() -> None:
    cell = "register(task('mine', title='{}'))"
    session(cell.format("One"), register=register, task=task)
    study = study_of({**SETTINGS, "train": ["mine"]}, "test")
    (part,) = study.extensions
    assert (part.name, part.source) == ("task mine", "")
    before = study.hash()
    session(cell.format("Two"), register=register, task=task)
    assert study.extensions[0].sha256 != part.sha256
    assert study.hash() != before


def test_register_takes_objects_and_classes_and_decorates() -> None:
    class Tiny(EncoderSpec):
        name: ClassVar[str] = "tiny-test"
        dim: int = 4

        def build(self, modality: object) -> object:  # type: ignore[override]
            raise NotImplementedError

    class Mean(Algorithm):
        name: ClassVar[str] = "mean-test"

    class Films(Dataset):
        name = "films-test"
        card = Card(title="Films", version="1", licence="own", access="here", citation="none")
        modalities = ("image",)
        targets = ("finding",)
        marker = "films.csv"

        def index(self, root: Path) -> object:  # type: ignore[override]
            raise NotImplementedError

        def load(self, root: Path, record: object) -> object:  # type: ignore[override]
            raise NotImplementedError

    assert register(Tiny) is Tiny is ENCODERS["tiny-test"]
    assert register(Mean) is Mean is ALGORITHMS["mean-test"]
    assert register(Films) is Films
    assert isinstance(DATASETS["films-test"], Films)
    made = task("made")
    assert register(made) is made is TASKS["made"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (3, "cannot register 3"),
        (dict, "cannot register <class 'dict'>"),
        (Classification, "cannot make a task of the class Classification"),
        (Algorithm, "has no name"),
        (TASKS["cd"], "the task 'cd' is registered twice"),
    ],
)
def test_what_cannot_be_registered_is_told_with_the_next_step(part: object, message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        register(part)
    assert caught.value.hint


def test_a_study_takes_tasks_and_settings_as_objects() -> None:
    class Own(Algorithm):
        name: ClassVar[str] = "own-test"
        mu: float = 0.5

    made = task("mine")
    study = Study(name="s", train=[made, TASKS["lod"]], algorithm=Own(), encoders={"image": "vit-mini"})  # type: ignore[arg-type]
    assert study.train == ("mine", "lod")
    assert study.train_tasks == (made, TASKS["lod"])
    assert study_of(study.resolved(), "test").resolved() == study.resolved()


def test_a_part_of_an_algorithm_combines_with_the_packages_and_counts_in_the_identity() -> None:
    @register
    class Own(Server):
        name: ClassVar[str] = "own-server"
        eta: float = 1.0

    combined = {"local": "fedprox", "server": {"name": "own-server", "eta": 0.5}}
    study = study_of({**SETTINGS, "train": ["lod"], "algorithm": combined}, "test")
    assert [plugin.source for plugin in study.extensions] == [__name__]
    assert study_of(study.resolved(), "test").hash() == study.hash()


def test_a_dataset_needs_no_simulator(tmp_path: Path) -> None:
    @register
    class Films(Dataset):
        name = "films-test"
        card = Card(title="Films", version="1", licence="own", access="here", citation="none")
        modalities = ("image",)
        targets = ("finding",)
        marker = "films.csv"

        def index(self, root: Path) -> object:  # type: ignore[override]
            raise NotImplementedError

        def load(self, root: Path, record: object) -> object:  # type: ignore[override]
            raise NotImplementedError

    dataset = DATASETS["films-test"]
    assert not dataset.has_twin
    assert DATASETS["chexpert"].has_twin
    with pytest.raises(DataError, match="films-test: no simulator") as caught:
        cached_twins({SERVER: dict.fromkeys(("chexpert", "films-test"), TwinSpec())}, tmp_path, Reporter.silent())
    assert "--data-root" in str(caught.value.hint)
    assert not (tmp_path / "twins").exists(), "nothing is written before it is clear that all can be"


def test_the_twin_of_a_plugins_dataset_is_another_when_the_plugin_changes(tmp_path: Path) -> None:
    dataset = DATASETS["chexpert"]
    before = twin_place(dataset, TwinSpec(), tmp_path)
    assert before == twin_place(dataset, TwinSpec(), tmp_path)
    path = tmp_path / "films.py"
    source = (
        "import medfed.core.catalog as c\nfrom medfed.datasets.chexpert import DATASETS as D\n"
        "class Films(type(D[0])):\n    name = 'films-two'\nc.register(Films())\n"
    )
    places = []
    for text in (source, source + "# changed\n"):
        path.write_text(text, encoding="utf-8")
        plugins.load(path)
        places.append(twin_place(DATASETS["films-two"], TwinSpec(), tmp_path))
    assert places[0] != places[1]


def test_errors_of_plugins_are_the_packages_own() -> None:
    assert issubclass(PluginError, MedfedError)
