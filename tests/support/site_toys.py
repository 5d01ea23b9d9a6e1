"""Folders of a small federation and of its sites, for tests of the commands."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from medfed.cli import app as cli
from medfed.sites import credentials
from medfed.sites.credentials import write_trial
from medfed.sites.federation import FederationFolder, FederationSettings, init_federation
from medfed.sites.folder import SiteFolder, SiteSettings, init_site
from medfed.sites.invitation import Invitation, invited_study
from medfed.sites.policy import policy_for

HOST = "fed.example.org"
STUDY = """
name = "toy"
job = "benchmark"
train = ["ead"]
algorithm = "fedavg"
[twins]
num_patients = 40
[partition]
scheme = "sites"
num_clients = 2
[encoders]
ecg = "conv1d"
"""


def study_file(folder: Path, text: str = STUDY) -> Path:
    path = folder / "toy.toml"
    path.write_text(text)
    return path


def federation(folder: Path, host: str = HOST, port: int = 9092, text: str = STUDY) -> FederationFolder:
    made = init_federation(folder / "fed", FederationSettings(host=host, port=port), study_file(folder, text))
    write_trial(made.certificates.ca.parent, host)
    return made


def site(folder: Path, of: FederationFolder, name: str = "site-0", may_leave: tuple[str, ...] = ()) -> SiteFolder:
    bundle = of.invite()
    facts = Invitation.load(bundle)
    data = folder / f"data-{name}"
    data.mkdir()
    settings = SiteSettings(
        name=name, data_root=data, host=facts.host, port=facts.port, ca_fingerprint=facts.ca_fingerprint
    )
    policy = policy_for(invited_study(bundle, facts), may_leave or ("encoders", "heads", "buffers"), 5)
    return init_site(folder / name, settings, bundle, policy)


def medfed(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Run the command as a shell would and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["medfed", *map(str, words)])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def shift_clock(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let certificates be made and judged ``days`` from now."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(credentials, "datetime", Shifted)
