"""The reports in a real browser: no complaint, no request, every picture drawn, no sideways scrolling, printable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medfed.report.page import write_report
from support.browser import Browser, chromium
from support.fake_runs import fake_comparison, fake_run, fake_runs

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")

OPEN_ALL = "document.querySelectorAll('details').forEach(part => { part.open = true }); document.body.offsetHeight"
PICTURES = """[...document.querySelectorAll('svg, img')].map(part => {
  const box = part.getBoundingClientRect();
  const broken = part.tagName === 'IMG' && !part.naturalWidth;
  const name = part.querySelector('title')?.textContent || part.alt;
  return [broken ? 'broken image' : name, box.width, box.height];
})"""
INK = """[...document.querySelectorAll('svg[role=img]')].filter(part => {
  const box = part.getBBox();
  return !(box.width > 20 && box.height > 10);
}).map(part => part.querySelector('title').textContent)"""
OUTSIDE = """[...document.querySelectorAll('body *')].filter(part =>
  !part.closest('.scroll') && !part.closest('svg') && part.getBoundingClientRect().right > innerWidth + 1
).map(part => part.tagName + '.' + part.className)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module", params=["run", "comparison"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "run":
        write_report(fake_run(place), place / "report.html")
    else:
        write_report(fake_comparison(), place / "report.html", fake_runs(place))
    return place / "report.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_a_report_is_drawn_without_complaint(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width, dark=dark)
    browser.evaluate(OPEN_ALL)
    pictures = browser.evaluate(PICTURES)
    assert isinstance(pictures, list)
    assert len(pictures) > 10
    assert [picture for picture in pictures if picture[1] < 20 or picture[2] < 10] == []
    assert not any(name == "broken image" for name, *_ in pictures)
    assert browser.evaluate(INK) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OUTSIDE) == []
    assert browser.problems == []


def test_the_theme_switch_works_under_the_policy(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = browser.evaluate(ground)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(ground) != before
    assert browser.problems == []


def test_another_script_would_be_stopped_and_heard(browser: Browser, page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 'x'</script></main>"))
    browser.open(bad, 1280)
    assert browser.evaluate("document.title") != "x"
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_it_prints(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    document = browser.pdf()
    assert document.startswith(b"%PDF-")
    assert len(document) > 50_000
