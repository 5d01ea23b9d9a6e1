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

from pydantic import Field

from medfed.core.errors import SiteError, StudyError
from medfed.core.files import PUBLIC, write_whole
from medfed.core.plugins import load
from medfed.runs.context import RunPaths
from medfed.sites import credentials
from medfed.sites.credentials import Certificates, load_public_key, public_bytes
from medfed.sites.invitation import STUDY, Invitation, versions
from medfed.sites.policy import study_sha256
from medfed.sites.settings import check_name, new_folder, read_settings, toml
from medfed.study.parts import SettingsModel
from medfed.study.study import Study, load_study

SETTINGS, CERTIFICATES, SITES, INVITATION = "federation.toml", "certificates", "sites", "invitation"


class Deadlines(SettingsModel):
    """How long the server waits for enough sites (at the start and later), and for one site's answer, in seconds."""

    wait_for_sites_seconds: float = Field(default=600, gt=0)
    hello_seconds: float = Field(default=1800, gt=0)
    train_seconds: float = Field(default=3600, gt=0)
    evaluate_seconds: float = Field(default=1800, gt=0)


class FederationSettings(SettingsModel):
    """``federation.toml``.

    Attributes:
        host: the name or address hospitals connect to; the certificate is for it.
        listen: the address the server listens on.
        min_sites: fewest sites to start and go on with; 0 is every registered one.
        data_root: folder of the server's own data; absent where the study has twins.
        runs: where run folders go, relative to the federation's folder.
        cache: where twins and the tiny LLM are kept.
    """

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
    """A federation's folder ``root``, read. ``sites``: name → public key (PEM, subject's public key info), sorted."""

    root: Path
    settings: FederationSettings
    sites: Mapping[str, bytes]

    @classmethod
    def load(cls, root: Path) -> FederationFolder:
        """Read a federation's folder. Raises SiteError if it is none, or its settings or a site's key are wrong; the
        message names file and field. Raises PluginError if a plugin is absent or fails."""
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
    def paths(self) -> RunPaths:
        """Where run folders go, where twins and the tiny LLM are kept, and the server's own data."""
        return RunPaths(self.root / self.settings.runs, self.settings.cache.expanduser(), self.settings.data_root)

    @property
    def certificates(self) -> Certificates:
        """The certificate's files."""
        return credentials.certificates_in(self.root / CERTIFICATES)

    def check_sites(self) -> None:
        """Raise SiteError if fewer sites are registered than are needed."""
        if len(self.sites) < max(1, self.min_sites):
            what = f"{len(self.sites)} site(s) registered, needed are {max(1, self.min_sites)}"
            hint = f"medfed federation add {self.root} SITE KEY.pub, or lower min_sites in {SETTINGS}"
            raise SiteError(what, where=self.root, hint=hint)

    def study(self) -> Study:
        """Read the study; raise StudyError if it is wrong."""
        return load_study(self.root / STUDY)

    def add(self, name: str, key: Path) -> str:
        """Register a site's public key under ``name`` and return its fingerprint. Raises SiteError if the name or the
        key is taken or wrong."""
        check_name(name)
        public_key = load_public_key(key)
        if name in self.sites:
            hint = "medfed federation remove it first"
            raise SiteError("a site of this name is registered", where=f"site {name!r}", hint=hint)
        for other, registered in self.sites.items():
            if registered == public_bytes(public_key):
                raise SiteError(f"this key is registered already, as {other!r}", where=key, hint="one key a site")
        write_whole(self.root / SITES / f"{name}.pub", key.read_bytes(), PUBLIC)
        return credentials.key_fingerprint(public_key)

    def remove(self, name: str) -> None:
        """Forget a site's key; a server that runs refuses the site after its next start. Raises SiteError if there is
        no such site."""
        if name not in self.sites:
            known = ", ".join(self.sites) or "none"
            raise SiteError("no such site", where=f"site {name!r}", hint=f"registered are: {known}")
        (self.root / SITES / f"{name}.pub").unlink()

    def invite(self, bundle: Path | None = None) -> Path:
        """Write the bundle for hospitals into ``bundle`` (by default ``invitation/``) and return its folder."""
        folder, study, ca = bundle or self.root / INVITATION, self.study(), self.certificates.ca
        fingerprint = credentials.certificate_fingerprint(credentials.load_authority(ca))
        named = {"study": study.name, "study_sha256": study_sha256(study), "ca_fingerprint": fingerprint}
        plugins = {plugin.name: plugin.sha256 for plugin in study.extensions}
        server = {"host": self.settings.host, "port": self.settings.port, "versions": versions()}
        facts = Invitation.model_validate({**server, **named, "plugins": plugins})
        facts.write(folder, ca.read_bytes(), (self.root / STUDY).read_bytes())
        return folder


def init_federation(root: Path, settings: FederationSettings, study: Path) -> FederationFolder:
    """Write a new federation's folder, still without a certificate, and return it. Raises StudyError if the study is
    wrong, or no federation of hospitals can run it. Raises SiteError if the folder is not new."""
    check_study(load_study(study), study)
    new_folder(root)
    (root / SITES).mkdir()
    write_whole(root / STUDY, study.read_bytes(), PUBLIC)
    write_whole(root / SETTINGS, settings.as_toml(), PUBLIC)
    return FederationFolder.load(root)


def check_study(study: Study, where: Path) -> None:
    """Raise StudyError, naming the field, for a study that a federation of hospitals cannot run."""
    if study.partition.scheme != "sites":
        what = f"partition.scheme is {study.partition.scheme!r}: it divides one party's data over made-up clients"
        raise StudyError(what, where=where, hint='set scheme = "sites": a site trains on its own folder')
    if central := sorted({"local", "centralised"} & set(study.baselines)):
        what = f"baselines: {central[0]!r} needs the sites' data in one place"
        hint = "leave it out, or run the study on one machine, on data that may be there"
        raise StudyError(what, where=where, hint=hint)
