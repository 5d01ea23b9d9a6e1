"""A federation's folder at its server: the study, where hospitals reach it, its certificate, which sites may come.

::

    DIR/federation.toml study.toml
    DIR/certificates/    ca.pem server.pem server.key
    DIR/sites/<name>.pub one public key a site
    DIR/invitation/      what hospitals are given
    DIR/status.json      where the run stands
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medfed.core.errors import SiteError, StudyError
from medfed.core.files import PUBLIC, write_whole
from medfed.core.plugins import load
from medfed.sites.credentials import (
    Certificates,
    certificate_fingerprint,
    certificates_in,
    key_fingerprint,
    load_authority,
    load_public_key,
    public_bytes,
)
from medfed.sites.invitation import STUDY, Invitation, versions
from medfed.sites.policy import study_sha256
from medfed.sites.settings import check_name, new_folder, read_settings, toml
from medfed.study.study import Study, load_study

SETTINGS, CERTIFICATES, SITES, INVITATION = "federation.toml", "certificates", "sites", "invitation"


class Deadlines(BaseModel):
    """How long the server waits, in seconds.

    Attributes:
        wait_for_sites_seconds: for enough sites to be there, at the start and when too few are left.
        hello_seconds: for a site to decode its data and answer.
        train_seconds: for one site's update.
        evaluate_seconds: for one site's scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wait_for_sites_seconds: float = Field(default=600, gt=0)
    hello_seconds: float = Field(default=1800, gt=0)
    train_seconds: float = Field(default=3600, gt=0)
    evaluate_seconds: float = Field(default=1800, gt=0)


class FederationSettings(BaseModel):
    """``federation.toml``.

    Attributes:
        host: the name or address hospitals connect to; the certificate is for it.
        port: TCP port.
        listen: the address the server listens on.
        min_sites: fewest sites to start and go on with; 0 is every registered one.
        data_root: folder of the server's own data; absent where the study has twins.
        runs: where run folders go, relative to the federation's folder.
        cache: where twins and the tiny LLM are kept.
        plugins: files or modules with code that the study needs.
        deadlines: how long the server waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    listen: str = "0.0.0.0"  # noqa: S104  (hospitals come from outside)
    min_sites: int = Field(default=0, ge=0)
    data_root: Path | None = None
    runs: Path = Path("runs")
    cache: Path = Path("~/.cache/medfed")
    plugins: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)
    deadlines: Deadlines = Deadlines()

    def as_toml(self) -> str:
        """Return the file."""
        values = self.model_dump(mode="json", exclude_none=True)
        deadlines = values.pop("deadlines")
        return f"{toml(values)}\n[deadlines]\n{toml(deadlines)}"


@dataclass(frozen=True)
class FederationFolder:
    """A federation's folder, read.

    Attributes:
        root: the folder.
        settings: ``federation.toml``.
        sites: site → public key (PEM, subject's public key info), sorted by name.
    """

    root: Path
    settings: FederationSettings
    sites: Mapping[str, bytes]

    @classmethod
    def load(cls, root: Path) -> FederationFolder:
        """Read a federation's folder.

        Raises:
            SiteError: it is none, or its settings or a site's key are wrong; the message names file and field.
            PluginError: a plugin is absent or fails.
        """
        settings = read_settings(root / SETTINGS, FederationSettings, "make the folder: medfed federation init")
        for source in settings.plugins:
            load(source)
        keys = sorted((root / SITES).glob("*.pub"))
        return cls(root, settings, {path.stem: public_bytes(load_public_key(path)) for path in keys})

    @property
    def min_sites(self) -> int:
        """Fewest sites to start and go on with."""
        return self.settings.min_sites or len(self.sites)

    @property
    def runs(self) -> Path:
        """Where run folders go."""
        return self.root / self.settings.runs

    @property
    def cache(self) -> Path:
        """Where twins and the tiny LLM are kept."""
        return self.settings.cache.expanduser()

    @property
    def study_path(self) -> Path:
        """The study's file."""
        return self.root / STUDY

    @property
    def certificates(self) -> Certificates:
        """The certificate's files."""
        return certificates_in(self.root / CERTIFICATES)

    def check_sites(self) -> None:
        """Refuse to start with fewer sites registered than are needed.

        Raises:
            SiteError: there are too few.
        """
        if not self.sites or len(self.sites) < self.min_sites:
            raise SiteError(
                f"{len(self.sites)} site(s) registered, needed are {max(1, self.min_sites)}",
                where=self.root,
                hint=f"medfed federation add {self.root} SITE KEY.pub, or lower min_sites in {SETTINGS}",
            )

    def study(self) -> Study:
        """Read the study; raise StudyError if it is wrong."""
        return load_study(self.study_path)

    def add(self, name: str, key: Path) -> str:
        """Register a site's public key under ``name`` and return its fingerprint.

        Raises:
            SiteError: the name or the key is taken or wrong.
        """
        check_name(name)
        public_key = load_public_key(key)
        if name in self.sites:
            hint = "medfed federation remove it first"
            raise SiteError("a site of this name is registered", where=f"site {name!r}", hint=hint)
        for other, registered in self.sites.items():
            if registered == public_bytes(public_key):
                raise SiteError(f"this key is registered already, as {other!r}", where=key, hint="one key a site")
        write_whole(self.root / SITES / f"{name}.pub", key.read_bytes(), PUBLIC)
        return key_fingerprint(public_key)

    def remove(self, name: str) -> None:
        """Forget a site's key; a server that runs refuses the site after its next start.

        Raises:
            SiteError: no such site.
        """
        if name not in self.sites:
            known = ", ".join(self.sites) or "none"
            raise SiteError("no such site", where=f"site {name!r}", hint=f"registered are: {known}")
        (self.root / SITES / f"{name}.pub").unlink()

    def invite(self, bundle: Path | None = None) -> Path:
        """Write the bundle for hospitals into ``bundle`` (by default ``invitation/``) and return its folder."""
        folder, study, ca = bundle or self.root / INVITATION, self.study(), self.certificates.ca
        facts = Invitation(
            host=self.settings.host,
            port=self.settings.port,
            study=study.name,
            study_sha256=study_sha256(study),
            ca_fingerprint=certificate_fingerprint(load_authority(ca)),
            versions=versions(),
            plugins={plugin.name: plugin.sha256 for plugin in study.extensions},
        )
        facts.write(folder, ca.read_bytes(), self.study_path.read_bytes())
        return folder


def init_federation(root: Path, settings: FederationSettings, study: Path) -> FederationFolder:
    """Write a new federation's folder, still without a certificate, and return it.

    Raises:
        StudyError: the study is wrong, or no federation of hospitals can run it. SiteError: the folder is not new.
    """
    check_study(load_study(study), study)
    new_folder(root)
    (root / SITES).mkdir()
    write_whole(root / STUDY, study.read_bytes(), PUBLIC)
    write_whole(root / SETTINGS, settings.as_toml(), PUBLIC)
    return FederationFolder.load(root)


def check_study(study: Study, where: Path) -> None:
    """Refuse a study that a federation of hospitals cannot run.

    Raises:
        StudyError: naming the field.
    """
    if study.partition.scheme != "sites":
        raise StudyError(
            f"partition.scheme is {study.partition.scheme!r}: it divides one party's data over made-up clients",
            where=where,
            hint='set scheme = "sites": a site trains on its own folder',
        )
    if central := sorted({"local", "centralised"} & set(study.baselines)):
        raise StudyError(
            f"baselines: {central[0]!r} needs the sites' data in one place",
            where=where,
            hint="leave it out, or run the study on one machine, on data that may be there",
        )
