"""The tests themselves: each asserts something, shapes are checked in them, and what none may do is refused."""

from __future__ import annotations

import ast
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from medfed.evaluation.metrics import single_class
from support.guards import ROOT, watch_models
from support.shapes import with_checks

CHECKS = {"raises", "warns", "fail", "require_same"}
Refused = pytest.fail.Exception


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def called(function: ast.FunctionDef) -> set[str]:
    found = {node.func for node in ast.walk(function) if isinstance(node, ast.Call)}
    return {part.id if isinstance(part, ast.Name) else getattr(part, "attr", "") for part in found}


def asserts(function: ast.FunctionDef) -> bool:
    own = any(isinstance(node, ast.Assert) for node in ast.walk(function))
    return own or any(name in CHECKS or name.startswith("assert_") for name in called(function))


def test_every_test_asserts_something() -> None:
    """In its own lines, or in a helper that it calls."""
    everything = list(functions())
    asserting = {function.name for _, function in everything if asserts(function)}
    while more := {f.name for _, f in everything if f.name not in asserting and called(f) & asserting}:
        asserting |= more
    tests = [(path, function) for path, function in everything if function.name.startswith("test_")]
    assert len(tests) > 1000
    assert [f"{path.name}: {function.name}" for path, function in tests if function.name not in asserting] == []


def test_no_test_module_imports_another() -> None:
    """Tiers are collected apart; what several need lives in tests/support."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    names = {path.stem for path in tests}
    lines = [
        (path.stem, words) for path in tests for words in map(str.split, path.read_text(encoding="utf-8").splitlines())
    ]
    assert len(lines) > 10_000
    assert [
        (name, words[1]) for name, words in lines if words[:1] in (["from"], ["import"]) and words[1] in names
    ] == []


def test_a_unit_test_starts_no_process(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a process is started \(subprocess.Popen\) in a unit test"):
        subprocess.run([sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')"], check=False)
    with pytest.raises(Refused, match=r"multiprocessing"):
        multiprocessing.get_context("spawn").Process(target=print).start()
    assert not (tmp_path / "ran").exists()


def test_a_unit_test_builds_no_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    base = type("PreTrainedModel", (), {"__init__": lambda model: None})
    encoder, llm = (type(name, (base,), {}) for name in ("ViTModel", "LlamaForCausalLM"))
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", SimpleNamespace(PreTrainedModel=base))
    watch_models()
    assert encoder()
    with pytest.raises(Refused, match=r"an LLM \(LlamaForCausalLM\) is built in a unit test"):
        llm()


@pytest.mark.parametrize("name", ["docs/bench.json", "README.md", "new.txt"])
def test_no_test_writes_into_the_repository(name: str) -> None:
    with pytest.raises(Refused, match="is written: it lies in the repository"), (ROOT / name).open("a"):
        pass
    assert not (ROOT / "new.txt").exists()


@pytest.mark.parametrize("path", [ROOT / "runs/bench/latest.json", ROOT / "report.html", "~/.cache/medfed/llm"])
def test_no_test_opens_what_a_command_of_the_readme_leaves(path: Path | str) -> None:
    with pytest.raises(Refused, match="a command of the README leaves it behind"):
        Path(path).expanduser().read_bytes()


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        single_class(np.zeros((2, 2, 2)))


SOURCE = '''"""A module."""
from __future__ import annotations
from medfed.core.types import Params
Weights = Float[Tensor, "width"]
def plain(x: int) -> int:
    def inner(y: Weights) -> None: ...
    return x
class Held:
    values: Float[Tensor, "batch"]
    def method(self) -> Weights: ...
    def other(self) -> str: ...
'''


def test_signatures_with_shapes_are_checked_and_no_others() -> None:
    tree = with_checks(SOURCE, frozenset({"Float", "Weights"}))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert {node.name: len(node.decorator_list) for node in nodes} == {
        "plain": 0,
        "inner": 1,
        "Held": 1,
        "method": 1,
        "other": 0,
    }
