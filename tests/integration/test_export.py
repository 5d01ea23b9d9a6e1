"""What an export promises: stock libraries give the injected model's logits, and the folder alone gives its answers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from medfed.cli.app import app
from medfed.core.catalog import TASKS
from medfed.core.errors import MedfedError, RunError, StudyError
from medfed.export.export import Form, export_run, loading
from medfed.export.exported import ExportedTask, Processor
from medfed.export.lowrank import Factors, folded
from medfed.injection.model import InjectedModel
from medfed.llm.checkpoints import foundation_checksum
from medfed.llm.foundation import Foundation, load_foundation
from medfed.records.schema import ScoreFile
from medfed.report.text import bounds, number
from medfed.runs.loaded import LoadedRun
from medfed.study.foundation import HuggingFaceSettings
from medfed.tasks.base import Task
from support import stock_libraries
from support.finished_runs import OFFSETS, UNTRAINED, finished_run, llm_folder
from support.loaded import probabilities, text
from support.page_walk import PAGE, blocks

RANK = 6
"""3 experts of rank 2."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llm_folder(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llm: Path) -> Path:
    return finished_run(tmp_path_factory.mktemp("runs"), llm)


@pytest.fixture(scope="module")
def loaded(run: Path, llm: Path) -> LoadedRun:
    return LoadedRun(run, run.parent, llm)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, run: Path, llm: Path) -> Path:
    """A folder with every form: tasks as LoRAs, one cut, one at full rank, one merged."""
    out = tmp_path_factory.mktemp("exports")
    export_run(run, out / "many", run, llm, Form(tasks=["cd", UNTRAINED, "mp"]))
    for name in ("cd", UNTRAINED, "mp"):
        (out / "many" / name).rename(out / name)
    export_run(run, out / "cut", run, llm, Form(tasks=["cd"], rank=3))
    export_run(run, out / "full", run, llm, Form(tasks=["cd"], rank=RANK))
    export_run(run, out / "merged", run, llm, Form(tasks=[UNTRAINED], merge=True))
    return out


TASK_OF = {"cd": "cd", UNTRAINED: UNTRAINED, "mp": "mp", "cut": "cd", "full": "cd", "merged": UNTRAINED}


def samples(task: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Raw arrays as hospitals have them: an image of any size, hours with gaps."""
    rng = np.random.default_rng(seed)
    raw = {
        "image": rng.random((80, 90)),
        "ecg": rng.normal(size=(12, 900)),
        "vitals": rng.normal(1.0, 0.5, (20, 7)),
        "labs": np.where(rng.random((24, 39)) < 0.5, np.nan, rng.random((24, 39))),
        "input": rng.random((24, 1)),
        "output": rng.random((30, 1)),
    }
    return {name: raw[name] for name in TASKS[task].modalities}


@pytest.fixture(scope="module")
def prompts(exports: Path) -> dict[str, Tensor]:
    return {name: Processor.load(exports / name).embeddings(samples(task)).clone() for name, task in TASK_OF.items()}


@pytest.fixture(scope="module")
def stock(exports: Path, llm: Path, prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits of stock transformers and PEFT, in a process that cannot import medfed."""
    save_file(dict(prompts), exports / "prompts.safetensors")
    places = [llm, exports / "prompts.safetensors", exports / "logits.safetensors", *(exports / n for n in TASK_OF)]
    command = [sys.executable, "-I", stock_libraries.__file__, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return load_file(exports / "logits.safetensors")


@torch.no_grad()
def injected_logits(loaded: LoadedRun, task: str, prompt: Tensor) -> Tensor:
    injected = loaded.injector.injected.eval()
    with injected.mixing(injected.alpha([TASKS[task]])):
        found: Tensor = injected.llm(inputs_embeds=prompt[None]).logits[0]
    return found


@pytest.mark.parametrize("name", ["cd", UNTRAINED, "mp", "full", "merged"])
def test_stock_libraries_give_the_logits_of_the_injected_model(
    name: str, stock: Mapping[str, Tensor], prompts: Mapping[str, Tensor], loaded: LoadedRun
) -> None:
    expected = injected_logits(loaded, TASK_OF[name], prompts[name])
    with torch.no_grad():
        base = loaded.injector.injected.foundation.model(inputs_embeds=prompts[name][None]).logits[0]
    difference, moved = (stock[name] - expected).abs().max().item(), (base - expected).abs().max().item()
    print(f"{name}: max |Δ| = {difference:.1e}; the adapter moves the logits by {moved:.2f}")
    assert difference < 1e-5
    assert moved > 0.1, "an adapter that does nothing would pass"


def test_the_cut_adapter_is_another_one(stock: Mapping[str, Tensor]) -> None:
    assert (stock["cut"] - stock["full"]).abs().max() > 1e-3


def test_each_task_has_its_own_mixture(loaded: LoadedRun, stock: Mapping[str, Tensor], exports: Path) -> None:
    first, second = (load_file(exports / name / "adapter_model.safetensors") for name in ("cd", "mp"))
    assert first.keys() == second.keys()
    assert any((first[name] - second[name]).abs().max() > 1e-3 for name in first)


def test_the_error_that_is_printed_is_the_one_measured_on_dense_weights(
    exports: Path, loaded: LoadedRun, run: Path, llm: Path
) -> None:
    facts = json.loads((exports / "cut" / "truncation.json").read_text(encoding="utf-8"))
    tensors = load_file(exports / "cut" / "adapter_model.safetensors")
    errors, norms, by_layer = 0.0, 0.0, {}
    for layer, whole in folded(loaded.injector.injected, TASKS["cd"]).items():
        update = whole.up.double() @ whole.down.double()
        down, up = (tensors[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "AB")
        error, norm = (up @ down - update).norm().item(), update.norm().item()
        by_layer[layer] = error / norm
        errors, norms = errors + error**2, norms + norm**2
    assert facts["relative_error"] == pytest.approx((errors / norms) ** 0.5, rel=1e-4)
    assert facts["energy_kept"] == pytest.approx(1 - errors / norms, rel=1e-4)
    assert facts["layers"][facts["worst_layer"]]["relative_error"] == pytest.approx(max(by_layer.values()), rel=1e-4)
    command = ["export", str(run), "--task", "cd", "--rank", "3", "--out", str(exports / "said")]
    said = CliRunner().invoke(app, [*command, "--foundation", str(llm)])
    assert f"relative error {facts['relative_error']:.6f}" in said.output, said.output
    assert f"relative error {facts['relative_error']:.6f}" in (exports / "cut" / "README.md").read_text("utf-8")


def test_full_rank_is_exact(exports: Path) -> None:
    plain, full = (load_file(exports / name / "adapter_model.safetensors") for name in ("cd", "full"))
    assert all(torch.equal(plain[name], full[name]) for name in plain)
    assert json.loads((exports / "full" / "truncation.json").read_text("utf-8"))["relative_error"] == 0.0


def test_the_adapter_is_an_ordinary_lora_without_head_or_embeddings(exports: Path, llm: Path) -> None:
    for name, rank in (("cd", RANK), ("cut", 3)):
        config = json.loads((exports / name / "adapter_config.json").read_text("utf-8"))
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
        assert Path(config["base_model_name_or_path"]) == llm
        assert not any(config[field] for field in ("modules_to_save", "rank_pattern", "alpha_pattern"))
        tensors = load_file(exports / name / "adapter_model.safetensors")
        assert all(re.search(r"(self_attn|mlp)\.\w+_proj\.lora_[AB]\.weight$", key) for key in tensors)
        assert {min(value.shape) for value in tensors.values()} == {rank}


@pytest.mark.parametrize("name", ["cd", UNTRAINED, "mp", "full", "merged"])
def test_the_folder_alone_answers_as_the_run_does(name: str, exports: Path, llm: Path, loaded: LoadedRun) -> None:
    task = TASKS[TASK_OF[name]]
    exported = ExportedTask.load(exports / name, foundation=llm)
    for seed in range(3):
        raw = samples(task.name, seed)
        expected, found = probabilities(loaded, task, raw), exported.probabilities(raw)
        assert found.keys() == expected.keys()
        assert max(abs(found[answer] - expected[answer]) for answer in found) < 1e-5
    assert exported.answer(samples(task.name)) == text(loaded, task, samples(task.name))
    seen = [exported.probabilities(samples(task.name, seed))["Yes"] for seed in range(3)]
    assert len(set(seen)) == 3, "the answer must depend on the sample"


def test_a_missing_modality_and_another_question_are_borne(exports: Path, llm: Path, loaded: LoadedRun) -> None:
    exported, task = ExportedTask.load(exports / "mp", foundation=llm), TASKS["mp"]
    raw = samples("mp")
    whole = exported.embeddings(raw)
    del raw["labs"]
    assert len(exported.embeddings(raw)) < len(whole)
    assert torch.equal(whole, Processor.load(exports / "mp").embeddings(samples("mp")))
    asked = task.model_copy(update={"question": "Is it red?"})
    expected, found = probabilities(loaded, asked, raw), exported.probabilities(raw, "Is it red?")
    assert found["Yes"] == pytest.approx(expected["Yes"], abs=1e-5)
    assert found != exported.probabilities(raw)


def by_first_tokens(folder: Path, logits: Tensor) -> dict[str, float]:
    """The way of docs/deployment.md: log-probabilities of the answers' first tokens, less the offset, normalised."""
    config = json.loads((folder / "processor" / "processor.json").read_text("utf-8"))
    ids = config["prompt"]["answer_ids"]
    assert all(len(answer) == 1 for answer in ids), "with longer answers the first token is not all"
    last = logits[-1].log_softmax(-1)[[answer[0] for answer in ids]]
    offset = config["calibration"].get(config["task"]["question"], [0.0] * len(ids))
    return dict(zip(config["task"]["answers"], (last - torch.tensor(offset)).softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("name", ["cd", UNTRAINED, "mp", "merged"])
def test_a_server_can_score_by_the_embeddings_and_the_token_ids_alone(
    name: str, exports: Path, loaded: LoadedRun, stock: Mapping[str, Tensor]
) -> None:
    task = TASKS[TASK_OF[name]]
    found, expected = by_first_tokens(exports / name, stock[name]), probabilities(loaded, task, samples(task.name))
    assert found == pytest.approx(expected, abs=1e-5)


class Engine:
    """Stands in for vLLM, with the injected model behind it: what the page's Python asks of it, it answers."""

    options: ClassVar[dict[str, object]] = {}
    behind: ClassVar[LoadedRun]

    def __init__(self, model: str, **options: object) -> None:
        type(self).options = options

    def generate(self, prompt: Mapping[str, Tensor], asked: SimpleNamespace, lora_request: Sequence[object]) -> list:
        name, number, path = lora_request
        assert (name, number, Path(str(path)).name) == ("cd", 1, "cd")
        last = injected_logits(self.behind, "cd", prompt["prompt_embeds"].float())[-1]
        kept = last[asked.allowed_token_ids].log_softmax(-1)  # processed: after the other tokens are ruled out
        found = {t: SimpleNamespace(logprob=v) for t, v in zip(asked.allowed_token_ids, kept.tolist(), strict=True)}
        assert len(found) == asked.logprobs
        return [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[found])])]


def test_the_python_of_the_deployment_page_gives_the_probabilities(
    exports: Path, loaded: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "served").symlink_to(exports)
    monkeypatch.chdir(tmp_path)
    Engine.behind = loaded
    vllm, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    monkeypatch.setattr(vllm, "LLM", Engine, raising=False)
    monkeypatch.setattr(vllm, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(request, "LoRARequest", lambda *parts: parts, raising=False)
    for name, module in (("vllm", vllm), ("vllm.lora", ModuleType("vllm.lora")), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    names = {"grey": samples("cd")["image"]}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    assert Engine.options["max_lora_rank"] == 128
    rounded = Processor.load(exports / "cd").embeddings(samples("cd")).bfloat16().float()
    expected = by_first_tokens(exports / "cd", injected_logits(loaded, "cd", rounded))
    assert names["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert names["probabilities"] == pytest.approx(probabilities(loaded, TASKS["cd"], samples("cd")), abs=0.05), (
        "bfloat16 prompts"
    )


def test_calibration_travels(exports: Path) -> None:
    config = json.loads((exports / UNTRAINED / "processor" / "processor.json").read_text("utf-8"))
    assert config["calibration"] == {TASKS[UNTRAINED].question: OFFSETS}


def test_nothing_in_a_folder_is_a_pickle_and_all_of_it_is_in_the_checksums(exports: Path) -> None:
    allowed = {".safetensors", ".json", ".md", ""}
    for name in TASK_OF:
        files = [path for path in (exports / name).rglob("*") if path.is_file()]
        assert {path.suffix for path in files} <= allowed
        assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04")]
        listed = (exports / name / "SHA256SUMS").read_text("utf-8")
        subprocess.run(["sha256sum", "-c", "--quiet"], input=listed, cwd=exports / name, text=True, check=True)
        assert {line.split("  ")[1] for line in listed.splitlines()} == {
            str(path.relative_to(exports / name)) for path in files if path.name != "SHA256SUMS"
        }


def test_the_card_holds_the_numbers_of_the_scores(exports: Path, run: Path) -> None:
    rows = ScoreFile.model_validate(json.loads((run / "scores.json").read_text("utf-8"))).rows
    card = (exports / "cd" / "README.md").read_text("utf-8")
    front = card.split("---")[1]
    for line in ("library_name: peft", "license: other", "base_model: ", "base_model_relation: adapter"):
        assert line in front
    titles = {"fedkim": "Injected LLM", "federated": "Federated-only", "always-yes": "Always yes"}
    for row in rows:
        if row.task == "cd" and row.model in titles:
            (line,) = [line for line in card.splitlines() if line.startswith(f"| {titles[row.model]} |")]
            assert f"| {number(row.value)} {bounds(row, 3)}".rstrip() in line, row
    for row in rows:
        if row.model == "fedkim" and row.metric == "auroc":
            assert f"| {row.n} | AUROC | {number(row.value)} {bounds(row, 3)} |" in card, row
    for word in ("COVID-19 Radiography Database", "PTB-XL", "Synthetic", "not a medical device", "Privacy", "always"):
        assert word in card
    (line,) = [line for line in card.splitlines() if line.startswith("from medfed")]
    module, names = line.removeprefix("from ").split(" import ")
    assert all(hasattr(import_module(module), name) for name in names.split(", ")), line
    merged = (exports / "merged" / "README.md").read_text("utf-8")
    assert "library_name: transformers" in merged
    assert "calibrated on unlabelled" in merged


def test_a_damaged_or_missing_file_is_refused(exports: Path, llm: Path, tmp_path: Path) -> None:
    for name in ("processor/encoders.safetensors", "adapter_model.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        subprocess.run(["cp", "-r", str(exports / "cd"), str(folder)], check=True)
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1  # safetensors itself would not notice
        (folder / name).write_bytes(bytes(data))
        with pytest.raises(RunError, match="checksum"):
            ExportedTask.load(folder, foundation=llm)
        (folder / name).unlink()
        with pytest.raises(RunError, match="missing"):
            ExportedTask.load(folder, foundation=llm)
    with pytest.raises(RunError, match="not an exported task"):
        ExportedTask.load(tmp_path)


def test_the_routed_adapter_comes_with_a_card_too(run: Path, llm: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "routed", run, llm, Form())
    names = {str(path.relative_to(tmp_path / "routed")) for path in (tmp_path / "routed").rglob("*") if path.is_file()}
    assert {"README.md", "adapter/adapter_model.safetensors", "encoders.safetensors", "projectors.safetensors"} <= names
    assert any(".router." in name for name in load_file(tmp_path / "routed" / "adapter" / "adapter_model.safetensors"))
    assert "library_name: medfed" in (tmp_path / "routed" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"tasks": ["codd"]}, StudyError, "did you mean cd"),
        ({"tasks": ["cd"], "rank": 0}, StudyError, "leaves nothing"),
        ({"rank": 3}, StudyError, "name a task"),
        ({"merge": True}, StudyError, "name a task"),
        ({"tasks": ["cd"], "rank": 3, "merge": True}, StudyError, "give --rank or --merge"),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded_or_written(
    options: dict, error: type[MedfedError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        export_run(tmp_path / "no-run", tmp_path / "out", tmp_path, None, Form(**options))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(RunError, match="exists"):
        export_run(run, tmp_path, tmp_path, None, Form(tasks=["cd"]))
    assert (tmp_path / "mine").read_text() == "precious"


def test_an_export_that_fails_leaves_nothing_behind(
    run: Path, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medfed.export.export.model_card", fails)
    with pytest.raises(RunError, match="No space left"):
        export_run(run, tmp_path / "out", tmp_path, llm, Form(tasks=["cd"]))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_experts_has_encoders_and_projectors_only(
    llm: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plug = finished_run(tmp_path_factory.mktemp("plug"), llm, num_experts=0, head_tokens=False)
    for options in ({"rank": 2}, {"merge": True}):
        with pytest.raises(RunError, match="no adapter"):
            export_run(plug, tmp_path / "out", tmp_path, llm, Form(tasks=["cd"], **options))
    (written,) = export_run(plug, tmp_path / "out", tmp_path, llm, Form(tasks=["cd"]))
    assert "no experts" in " ".join(written.notes)
    assert not list((tmp_path / "out").glob("adapter*"))
    assert "the base model as it is" in (tmp_path / "out" / "README.md").read_text("utf-8")
    run, exported = LoadedRun(plug, tmp_path, llm), ExportedTask.load(tmp_path / "out")
    expected, found = probabilities(run, TASKS["cd"], samples("cd")), exported.probabilities(samples("cd"))
    assert found["Yes"] == pytest.approx(expected["Yes"], abs=1e-6)


def test_one_expert_is_one_plain_lora(llm: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = finished_run(tmp_path_factory.mktemp("one"), llm, num_experts=1, rank=4, order="task_first")
    export_run(one, tmp_path / "out", tmp_path, llm, Form(tasks=["ead"]))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))["r"] == 4
    run, exported = LoadedRun(one, tmp_path, llm), ExportedTask.load(tmp_path / "out", foundation=llm)
    expected, found = probabilities(run, TASKS["ead"], samples("ead")), exported.probabilities(samples("ead"))
    assert found["Yes"] == pytest.approx(expected["Yes"], abs=1e-5)
    logits = injected_logits(run, "ead", exported.embeddings(samples("ead")))
    assert by_first_tokens(tmp_path / "out", logits) == pytest.approx(expected, abs=1e-5), "the question comes first"


HUB = "hospital/its-llm"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, llm: Path) -> Path:
    """A run whose study names the LLM, which came from a folder."""
    return finished_run(tmp_path_factory.mktemp("named"), llm, model=HUB)


def holding(folder: Path, text: str) -> set[str]:
    """Return the files of ``folder`` in which ``text`` stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)) for path in files if text.encode() in path.read_bytes()}


@pytest.mark.parametrize("options", [{"tasks": ["cd"], "merge": True}, {"tasks": ["cd"]}, {}])
def test_an_llm_with_a_name_and_a_folder_is_exported_under_its_name(
    options: dict, named: Path, llm: Path, tmp_path: Path
) -> None:
    (written,) = export_run(named, tmp_path / "out", tmp_path, llm, Form(**options))
    assert f"base_model: {HUB}" in (written.folder / "README.md").read_text("utf-8")
    assert holding(written.folder, str(llm.parent)) == set()
    assert str(llm) not in "".join(written.notes)
    if options and "merge" not in options:
        config = json.loads((written.folder / "adapter_config.json").read_text("utf-8"))
        assert config["base_model_name_or_path"] == HUB
        assert config["revision"] is None, "nobody knows which revision lies in the folder"
    if options:
        given = None if "merge" in options else llm
        found = ExportedTask.load(written.folder, foundation=given).probabilities(samples("cd"))
        assert found == pytest.approx(
            probabilities(LoadedRun(named, tmp_path, llm), TASKS["cd"], samples("cd")), abs=1e-5
        )


def test_the_path_of_a_nameless_llm_stands_where_it_is_needed_and_nowhere_else(
    run: Path, llm: Path, exports: Path, tmp_path: Path
) -> None:
    for name in TASK_OF:
        needed = set() if name == "merged" else {"adapter_config.json", "processor/processor.json"}
        assert holding(exports / name, str(llm.parent)) == needed, name
    card = (exports / "cd" / "README.md").read_text("utf-8")
    assert f"base_model: {llm.name}" in card
    assert "on the machine of the export" in card.split("## Inputs")[0]
    command = ["export", str(run), "--task", "cd", "--out", str(tmp_path / "out"), "--foundation", str(llm)]
    said = CliRunner().invoke(app, command).output
    assert f"The local path {llm} stands in adapter_config.json" in said


def test_the_folder_in_which_the_command_runs_has_a_name(
    run: Path, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llm)
    export_run(run, tmp_path / "out", tmp_path, Path(), Form(tasks=["cd"]))
    assert f"base_model: {llm.name}" in (tmp_path / "out" / "README.md").read_text("utf-8")
    ExportedTask.load(tmp_path / "out")


@pytest.mark.parametrize("options", [{"tasks": ["cd"]}, {"tasks": ["cd"], "merge": True}, {}])
def test_experts_that_learned_nothing_are_not_exported(
    options: dict, llm: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    still = finished_run(tmp_path_factory.mktemp("still"), llm, learned=False)
    with pytest.raises(RunError, match=r"learned nothing[\s\S]*align_rounds"):
        export_run(still, tmp_path / "out", tmp_path, llm, Form(**options))
    assert list(tmp_path.iterdir()) == []


def test_samples_go_where_a_placed_llm_is(
    exports: Path, llm: Path, loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def placed(*given: object, **options: object) -> Foundation:
        found = load_foundation(*given, **options)
        found.placed = True
        return found

    monkeypatch.setattr("medfed.export.exported.load_foundation", placed)
    exported = ExportedTask.load(exports / "cd", foundation=llm, device="meta")
    assert exported.embeddings(samples("cd")).device.type == "cpu"
    found, expected = exported.probabilities(samples("cd")), probabilities(loaded, TASKS["cd"], samples("cd"))
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_devices_of_a_run_stay_behind(loaded: LoadedRun, llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = HuggingFaceSettings(dtype="float32", device_map="cuda:1", load_in_4bit=True)
    monkeypatch.setattr(loaded, "study", loaded.study.model_copy(update={"foundation": here}))
    assert loading(loaded) == here.model_copy(update={"device_map": None, "sha256": foundation_checksum(llm)})


def test_an_export_refuses_another_llm(exports: Path, llm: Path, tmp_path: Path) -> None:
    other = llm_folder(tmp_path, rms_norm_eps=1e-3)
    with pytest.raises(StudyError, match=foundation_checksum(llm)):
        ExportedTask.load(exports / "cd", foundation=other)


def test_the_commands_of_the_deployment_page_work_in_their_order(
    run: Path, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = [block for block in blocks(PAGE.read_text("utf-8")) if "RUN is a run of your own" in block.who]
    monkeypatch.chdir(tmp_path)
    for line in block.text.splitlines():
        words = [str(run) if word == "RUN" else word for word in shlex.split(line, comments=True)]
        done = CliRunner().invoke(app, [*words[1:], "--foundation", str(llm)])
        assert done.exit_code == 0, f"{line}\n{done.output}{done.exception}"
    assert {path.name for path in (tmp_path / "served").iterdir()} == {"cd", "mp", "ped"}


def test_a_cut_adapter_is_folded_once(run: Path, llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(injected: InjectedModel, task: Task) -> dict[str, Factors]:
        calls.append(task.name)
        return folded(injected, task)

    monkeypatch.setattr("medfed.export.export.folded", counted)
    export_run(run, tmp_path / "out", tmp_path, llm, Form(tasks=["cd"], rank=3))
    assert calls == ["cd"]
    assert json.loads((tmp_path / "out" / "truncation.json").read_text("utf-8"))["full_rank"] == RANK
