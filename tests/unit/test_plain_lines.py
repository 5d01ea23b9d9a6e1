"""What is printed is what was said: fingerprints and brackets are neither pictures nor markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from medfed.cli import app as cli
from medfed.core.errors import SiteError
from medfed.core.progress import Reporter

FINGERPRINT = "A8:53:CD:FA:AB:UP:V:[red]:99"
"""Rich knows pictures of the names cd, ab, up and v."""


def test_a_line_is_printed_as_it_is() -> None:
    out = io.StringIO()
    Reporter(Console(file=out, width=20)).say(FINGERPRINT)
    assert out.getvalue() == f"{FINGERPRINT}\n"


def test_an_error_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(**options: object) -> None:
        raise SiteError(f"the CA's fingerprint is {FINGERPRINT}", where="ca.pem")

    monkeypatch.setattr(cli, "app", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == SiteError.exit_status
    assert capsys.readouterr().err == f"error: ca.pem: the CA's fingerprint is {FINGERPRINT}\n"
