"""A hospital's folder: who it is, where its data lies, which server it joins, its key, its policy and its audit log.

::

    DIR/site.toml policy.toml       the site's settings, in the hands of its people
    DIR/ca.pem invitation.toml study.toml     from the server's invitation
    DIR/node.key node.pub           the site's key; the first never leaves (rights 0600)
    DIR/state/                      what algorithms keep at the site between rounds
    DIR/egress.jsonl                what left
"""

from __future__ import annotations

import operator
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from medfed.core.errors import SiteError
from medfed.core.files import PUBLIC, write_whole
from medfed.core.plugins import allow_only, load
from medfed.sites import credentials
from medfed.sites.audit import LOG, AuditLog
from medfed.sites.invitation import CA, FACTS, STUDY, Invitation, invited_study
from medfed.sites.policy import Policy, allowed_plugins
from medfed.sites.settings import NAME_PATTERN, check_name, new_folder, read_settings, toml
from medfed.study.parts import SettingsModel
from medfed.study.study import Study

SITE, POLICY, KEY, PUBLIC_KEY, STATE = "site.toml", "policy.toml", "node.key", "node.pub", "state"


class SiteSettings(SettingsModel):
    """``site.toml``.

    Attributes:
        name: the one the site is registered under at the server.
        data_root: folder of the site's datasets in native layout.
        public_root: folder of the server's public datasets, for algorithms whose clients use them.
        ca: file of the CA certificate that signed the server's, relative to the site's folder.
        ca_fingerprint: its SHA-256, as people compared it.
        patience_seconds: the site waits so long for a server that cannot be reached; by default a day.
        plugins: files or modules with code that the study needs; the policy must allow their content.
    """

    name: str = Field(pattern=NAME_PATTERN)
    data_root: Path
    public_root: Path | None = None
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    ca: str = CA
    ca_fingerprint: str
    patience_seconds: float = Field(default=24 * 3600, gt=0)
    plugins: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder ``root``, read."""

    root: Path
    settings: SiteSettings
    invitation: Invitation
    policy: Policy

    @classmethod
    def load(cls, root: Path) -> SiteFolder:
        """Read a site's folder; keys and data are not looked at. From now on this process loads allowed plugins only.
        Raises SiteError if it is no site's folder, or a file of settings is wrong; the message names file and field.
        Raises PluginError if the policy does not allow a plugin, or it is absent or fails."""
        settings = read_settings(root / SITE, SiteSettings, "make the site's folder: medfed site init")
        allow_only(allowed_plugins(root / POLICY))
        for source in settings.plugins:
            load(source)
        return cls(root, settings, Invitation.load(root), Policy.load(root / POLICY))

    @property
    def name(self) -> str:
        """The site's name."""
        return self.settings.name

    @property
    def ca_pem(self) -> bytes:
        """The CA certificate, PEM, alone: nothing else in the file is trusted. Raises SiteError if it is not the one
        whose fingerprint people compared, or not valid now."""
        path = self.root / self.settings.ca
        authority = credentials.load_authority(path)
        fingerprint = credentials.certificate_fingerprint(authority)
        _check_fingerprint(fingerprint, self.settings.ca_fingerprint, SITE, path)
        credentials.check_valid_now(authority, path)
        return authority.public_bytes(Encoding.PEM)

    @property
    def private_key(self) -> Path:
        """The site's private key."""
        return self.root / KEY

    @property
    def public_key(self) -> Path:
        """The site's public key."""
        return self.root / PUBLIC_KEY

    @property
    def audit(self) -> AuditLog:
        """The audit log."""
        return AuditLog(self.root / LOG)

    def study(self) -> Study:
        """Read the study of the invitation. Raises StudyError if it is no study. Raises SiteError if it is not the
        invitation's."""
        return invited_study(self.root, self.invitation)

    def check(self) -> None:
        """Raise MedfedError for what hinders joining, and contact nobody: CA, key, policy, data root, log, study."""
        _ = self.ca_pem
        credentials.load_node_key(self.private_key)
        check_policy_rights(self.root / POLICY)
        check_data_root(self.settings.data_root)
        self.check_log()
        self.policy.check_study(self.study())

    def check_log(self) -> int:
        """Follow the audit log's chain and return its number of entries. Raises SiteError if it is broken."""
        verdict = self.audit.verify()
        if not verdict.ok:
            where = f"{self.audit.path}, line {verdict.line}"
            hint = f"see `medfed site egress-report {self.root}`; find out who changed it"
            raise SiteError(f"the audit log is broken: {verdict.reason}", where=where, hint=hint)
        return len(verdict.entries)


def check_policy_rights(path: Path) -> None:
    """Raise SiteError for a policy file that others than its owner may change."""
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SiteError("others than its owner may change the policy", where=path, hint=f"chmod go-w {path}")


def check_data_root(path: Path) -> None:
    """Raise SiteError for a data root that is no folder."""
    if not path.is_dir():
        raise SiteError("the data root is not a folder", where=path, hint=f"correct data_root in {SITE}, or mount it")


def init_site(root: Path, settings: SiteSettings, bundle: Path, policy: Policy) -> SiteFolder:
    """Write a new site's folder, with a new key pair, and return it. Raises SiteError if the folder is not new or
    the name is the server's. Raises SiteError too for an incomplete bundle or another CA than ``settings`` name."""
    check_name(settings.name)
    facts = Invitation.load(bundle)
    fingerprint = credentials.certificate_fingerprint(credentials.load_authority(bundle / CA))
    _check_fingerprint(fingerprint, facts.ca_fingerprint, "the invitation", bundle / CA)
    _check_fingerprint(fingerprint, settings.ca_fingerprint, "what you passed", bundle / CA)
    check_data_root(settings.data_root)
    invited_study(bundle, facts)
    new_folder(root)
    for name in (CA, STUDY, FACTS):
        write_whole(root / name, (bundle / name).read_bytes(), PUBLIC)
    credentials.write_node_key(root / KEY, root / PUBLIC_KEY, settings.name)
    write_whole(root / SITE, toml(settings.model_dump(mode="json", exclude_none=True)), PUBLIC)
    write_whole(root / POLICY, policy.as_toml(), PUBLIC)
    (root / STATE).mkdir()
    return SiteFolder.load(root)


def _check_fingerprint(fingerprint: str, wanted: str, source: str, path: Path) -> None:
    if fingerprint != wanted:
        hint = "do not join; compare the fingerprint with the server's people by telephone"
        raise SiteError(f"the CA's fingerprint is {fingerprint}, {source} says {wanted}", where=path, hint=hint)
