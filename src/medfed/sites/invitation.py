"""An invitation: what a federation's server gives every hospital. It holds no secret.

``ca.pem`` tells the server from an impostor, ``study.toml`` is what the hospital's people decide about. The CA's
fingerprint, which people compare by telephone, reveals a bundle that was exchanged on its way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import Field

from medfed import __version__
from medfed.core.catalog import registered_plugins
from medfed.core.errors import SiteError
from medfed.core.files import PUBLIC, write_whole
from medfed.core.plugins import allow_only, examine, load
from medfed.sites.policy import study_sha256
from medfed.sites.settings import NAME_PATTERN, read_settings, toml
from medfed.study.parts import SettingsModel
from medfed.study.study import Study, load_study

FACTS, CA, STUDY = "invitation.toml", "ca.pem", "study.toml"
COMPARED = ("flwr", "torch")
"""Packages of which both sides need the same version, as of medfed."""
HINT = "pass the folder that `medfed federation invite` wrote, unchanged"


class Invitation(SettingsModel):
    """``invitation.toml``: the server's host as its certificate has it, the study, and ``versions`` at the server.
    ``plugins``: name → content of the code from outside medfed that the study needs; the code itself is never sent."""

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    study: str = Field(pattern=NAME_PATTERN)
    study_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    ca_fingerprint: str
    versions: Mapping[str, str]
    plugins: Mapping[str, str] = {}

    @classmethod
    def load(cls, bundle: Path) -> Invitation:
        """Read the facts of a bundle. Raises SiteError if the bundle is incomplete or its facts are wrong."""
        for name in (CA, STUDY):
            if not (bundle / name).is_file():
                raise SiteError(f"no {name} in it", where=bundle, hint=HINT)
        return read_settings(bundle / FACTS, cls, HINT)

    def write(self, bundle: Path, ca: bytes, study: bytes) -> None:
        """Write a bundle into the folder ``bundle``."""
        facts = toml(self.model_dump(exclude={"versions", "plugins"})) + f"\n[versions]\n{toml(self.versions)}"
        if self.plugins:
            facts += f"\n[plugins]\n{toml({json.dumps(name): content for name, content in self.plugins.items()})}"
        for name, data in ((CA, ca), (STUDY, study), (FACTS, facts.encode())):
            write_whole(bundle / name, data, PUBLIC)


def invited_study(bundle: Path, facts: Invitation) -> Study:
    """Read the study of a bundle or of a site's folder. Raises StudyError if it is no study. Raises SiteError if it is
    not the one that the invitation's facts name, or needs a plugin that is not loaded."""
    contents = {plugin.sha256 for plugin in registered_plugins()} if facts.plugins else set()
    if missing := [f"{name} ({content})" for name, content in facts.plugins.items() if content not in contents]:
        what = f"the study needs plugins that are not loaded here: {', '.join(missing)}"
        hint = "get the file from the server's people, read it, and pass --plugin FILE to medfed site init"
        raise SiteError(what, where=bundle / STUDY, hint=hint)
    study = load_study(bundle / STUDY)
    if (digest := study_sha256(study)) != facts.study_sha256:
        what = f"the study's settings have the SHA-256 {digest}, the invitation says {facts.study_sha256}"
        hint = f"get a new invitation, or install medfed {facts.versions.get('medfed', '')} as the server has it"
        raise SiteError(what, where=bundle / STUDY, hint=hint)
    return study


def load_invited(facts: Invitation, references: Sequence[str]) -> tuple[str, ...]:
    """Load the plugins that a site's people name, and no others; return their sources. Raises SiteError if one is not
    in the invitation; nothing of it is executed. Raises PluginError if it is absent or fails."""
    plugins = [examine(reference) for reference in references]
    for plugin in plugins:
        if plugin.sha256 not in facts.plugins.values():
            known = ", ".join(f"{name} ({content})" for name, content in facts.plugins.items()) or "none"
            what = f"the invitation does not name the plugin {plugin}"
            raise SiteError(what, where=plugin.source, hint=f"it names {known}")
    allow_only(plugin.sha256 for plugin in plugins)
    for plugin in plugins:
        load(plugin.source)
    return tuple(plugin.source for plugin in plugins)


def versions() -> dict[str, str]:
    """Return the versions here of what both sides need alike; "missing" where a package is not installed."""
    installed = {"medfed": __version__}
    for package in COMPARED:
        try:
            installed[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            installed[package] = "missing"
    return installed
