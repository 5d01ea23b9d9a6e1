"""The page in a real browser: files are dropped, seen and asked about, without complaint or outside request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from medfed.datasets.images import write_grey
from support.browser import Browser, chromium
from support.finished_runs import QuickRun
from support.play_server import served

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")

READY = "!document.getElementById('ask').disabled"
ANSWER = "document.querySelector('#reply .answer')"
TROUBLE = "document.querySelector('.trouble')"
ASK = "document.getElementById('ask').click()"
WRITE = """(text => {{
  const place = document.getElementById('question');
  place.value = text;
  place.dispatchEvent(new Event('input'));
}})({question!r})"""
OUTSIDE = """[...document.querySelectorAll('body *')].filter(part =>
  !part.closest('svg') && part.id !== 'files' && part.getBoundingClientRect().right > innerWidth + 1
).map(part => part.tagName + '.' + part.className)"""
SIZES = """[...document.querySelectorAll('{selector}')].map(part => {{
  const box = part.getBoundingClientRect();
  return [box.width, box.height];
}})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def address(quick: QuickRun) -> Iterator[str]:
    with served(quick.load()) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def png(tmp_path: Path) -> Path:
    write_grey(tmp_path / "film.png", np.random.default_rng(0).random((80, 100)).astype(np.float32))
    return tmp_path / "film.png"


def ecg(quick: QuickRun) -> list[Path]:
    return [quick.ecgs[0], quick.ecgs[0].with_suffix(".dat")]


def sizes(browser: Browser, selector: str) -> list[list[float]]:
    found = browser.evaluate(SIZES.format(selector=selector))
    assert isinstance(found, list)
    return found


def answered(browser: Browser, question: str = "") -> str:
    """Ask, and return the answer's line."""
    browser.wait_for(READY)
    if question:
        browser.evaluate(WRITE.format(question=question))
    browser.evaluate(ASK)
    browser.wait_for(ANSWER)
    return str(browser.evaluate(f"{ANSWER}.textContent"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_dropped_picture_is_seen_asked_about_and_answered(
    browser: Browser, address: str, png: Path, width: int, dark: bool
) -> None:
    browser.open(address, width, dark=dark)
    browser.drop_files("#drop", [png])
    answer = answered(browser, "Is there a pleural effusion?")
    assert answer.split()[0] in ("Yes", "No")
    assert 0.5 <= float(answer.split()[1]) <= 1
    assert browser.evaluate("document.querySelector('.picture').naturalWidth") == 100
    assert len(sizes(browser, ".bars")) == 2
    assert all(box[0] > 150 and box[1] > 30 for box in sizes(browser, ".bars"))
    assert len(sizes(browser, ".bars:last-child g > path")) == 4  # one per expert
    assert browser.evaluate(OUTSIDE) == []
    assert browser.problems == []


def test_an_ecg_of_two_files_becomes_twelve_traces(browser: Browser, address: str, quick: QuickRun) -> None:
    browser.open(address, 1280)
    browser.drop_files("#drop", ecg(quick))
    assert answered(browser).split()[0] in ("Yes", "No")  # its first question was put in by itself
    assert len(sizes(browser, ".leads path[stroke*=ink]")) == 12
    assert all(box[0] > 100 and box[1] > 5 for box in sizes(browser, ".leads path[stroke*=ink]"))
    assert browser.problems == []


def test_the_two_files_of_an_ecg_may_come_one_after_the_other(browser: Browser, address: str, quick: QuickRun) -> None:
    browser.open(address, 1280)
    for number, file in enumerate(ecg(quick)):
        browser.drop_files("#drop", [file])
        browser.wait_for(READY if number else TROUBLE)
    assert len(sizes(browser, ".leads path[stroke*=ink]")) == 12
    assert browser.evaluate(TROUBLE) is None


def test_a_chosen_table_becomes_lines(browser: Browser, address: str, quick: QuickRun) -> None:
    browser.open(address, 1280)
    browser.choose_files("#files", [quick.icu])
    assert answered(browser).split()[0] in ("Yes", "No")
    names = browser.evaluate("[...document.querySelectorAll('.series dt')].map(name => name.textContent)")
    assert isinstance(names, list)
    assert {"hr", "map"} <= set(names)
    assert len(sizes(browser, ".series svg")) == len(names)
    assert browser.problems == []


def test_words_are_decoded_and_answers_can_be_given(browser: Browser, address: str, png: Path) -> None:
    browser.open(address, 1280)
    browser.drop_files("#drop", [png])
    answered(browser, "Where is the lesion?")
    assert "geometric mean" in str(browser.evaluate("document.getElementById('reply').textContent"))
    browser.evaluate("document.getElementById('answers').value = 'left, right, both sides'")
    browser.evaluate(ASK)
    browser.wait_for("document.querySelectorAll('#reply .bars')[0].querySelectorAll('g > path').length === 3")


def test_a_broken_file_is_said_kindly_and_the_page_works_on(
    browser: Browser, address: str, png: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "cut.png"
    broken.write_bytes(png.read_bytes()[:500])
    browser.open(address, 1280)
    browser.drop_files("#drop", [broken])
    browser.wait_for(TROUBLE)
    told = str(browser.evaluate(f"{TROUBLE}.textContent"))
    assert "cut.png" in told
    assert "Next step" in told
    assert not browser.evaluate(READY)
    browser.drop_files("#drop", [png])
    assert answered(browser, "Is it a film?")
    assert browser.evaluate(TROUBLE) is None


def test_a_known_question_leaves_with_its_file(browser: Browser, address: str, png: Path, quick: QuickRun) -> None:
    value = "document.getElementById('question').value"
    questions: list[object] = []
    browser.open(address, 1280)
    files: Sequence[Sequence[Path]] = (ecg(quick), [png])
    for some in files:
        browser.drop_files("#drop", some)
        browser.wait_for(READY)
        questions.append(browser.evaluate(value))
    assert "ECG" in str(questions[0])
    assert "image" in str(questions[1])
    browser.evaluate(WRITE.format(question="Is it mine?"))
    browser.drop_files("#drop", ecg(quick))
    browser.wait_for(f"{READY} && document.querySelector('.leads')")
    assert browser.evaluate(value) == "Is it mine?"


def test_a_file_dropped_beside_the_box_is_not_opened_by_the_browser(browser: Browser, address: str, png: Path) -> None:
    browser.open(address, 1280)
    browser.drop_files("footer, #form", [png])
    browser.wait_for(READY)
    assert browser.evaluate("location.href") == address
