"""``medfed site doctor``: whether this hospital can join, line by line, each with what to do.

The local lines need no server. The server's lines stop at the first that fails: without a name there is no port.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from medfed.core.catalog import DATASETS
from medfed.core.diagnosis import Check
from medfed.core.errors import DataError, MedfedError
from medfed.core.progress import Reporter
from medfed.data.decode import check_dataset
from medfed.data.sources import find_site, served_tasks
from medfed.sites.credentials import colons, key_fingerprint, load_authority, load_node_key
from medfed.sites.folder import POLICY, SiteFolder, check_policy_rights
from medfed.sites.invitation import versions

FREE_GIB = 1.0
"""Free disk that the state of the algorithms, caches and the log may need."""
SKEW_SECONDS = 4.0
"""A signed request from more than five seconds in the future is refused; the Date header is exact to one."""
TIMEOUT_SECONDS = 10.0


def local_checks(folder: SiteFolder, reporter: Reporter, *, data: bool = True) -> Iterator[Check]:
    """Check policy, key, CA, log, versions, disk and, if ``data``, every file of the study's datasets."""
    yield _tried("policy", lambda: _policy(folder))
    yield _tried("node key", lambda: key_fingerprint(load_node_key(folder.private_key).public_key()))
    yield _tried("CA certificate", lambda: _authority(folder))
    yield _tried("audit log", lambda: f"{folder.check_log()} entries, the chain holds")
    here = versions()
    for package, wanted in folder.invitation.versions.items():
        installed = here.get(package, "missing")
        hint = f"the server has {wanted}: install that version here, from where this one came"
        yield Check(f"version of {package}", installed, installed == wanted, hint)
    free = shutil.disk_usage(folder.root).free / 2**30
    yield Check("free disk", f"{free:.1f} GiB", free > FREE_GIB, f"free {FREE_GIB:g} GiB where {folder.root} lies")
    if data:
        yield from data_checks(folder, reporter)


def data_checks(folder: SiteFolder, reporter: Reporter) -> Iterator[Check]:
    """Open every file of the study's trained datasets that the site has; it needs at least one of them."""
    data_root, allowed = folder.settings.data_root, folder.policy.allowed_tasks
    try:
        study = folder.study()
        roots = find_site(study, folder.name, data_root, allowed)
    except MedfedError as error:
        absent = f"lay one of the study's datasets under {data_root} as `medfed data list` says"
        yield Check("data", error.what, False, absent if isinstance(error, DataError) else error.hint or "")
        return
    for name in sorted({task.dataset for task in served_tasks(study, folder.name, allowed)}):
        if name not in roots:
            yield Check(f"data: {name}", "absent; the site trains without it", True)
            continue
        problems, count = check_dataset(DATASETS[name], roots[name], reporter)
        hint = "".join(f"{problem.where}: {problem.what}; " for problem in problems[:1])
        hint += f"all of them: medfed data check {data_root}"
        yield Check(f"data: {name}", f"{count} examples, {len(problems)} problem(s)", not problems, hint)
    if study.algorithm.uses_public:
        root = folder.settings.public_root
        hint = f"{study.algorithm.label} needs the server's public data here: set public_root in site.toml"
        yield Check("public data", str(root or "not set"), root is not None and root.is_dir(), hint)


def server_checks(folder: SiteFolder) -> Iterator[Check]:
    """Resolve the server's name, reach its port, shake hands under the CA, and compare clocks."""
    for name, look in (("DNS", _dns), ("TCP port", _port), ("TLS", _tls), ("clock", _clock)):
        check = look(name, folder)
        yield check
        if not check.ok:
            return


def _client_context(folder: SiteFolder) -> ssl.SSLContext:
    """Return TLS settings that trust the federation's CA and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=folder.ca_pem.decode())
    return context


def _tried(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look(), True)
    except MedfedError as error:
        place = f"{error.where}: " if error.where else ""
        return Check(name, f"{place}{error.what}", False, error.hint or "")


def _policy(folder: SiteFolder) -> str:
    check_policy_rights(folder.root / POLICY)
    folder.policy.check_study(folder.study())
    return f"allows the study {folder.invitation.study!r}"


def _authority(folder: SiteFolder) -> str:
    _ = folder.ca_pem
    until = load_authority(folder.root / folder.settings.ca).not_valid_after_utc
    return f"{folder.settings.ca_fingerprint}, valid until {until:%Y-%m-%d}"


def _dns(name: str, folder: SiteFolder) -> Check:
    host, port = folder.settings.host, folder.settings.port
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        hint = f"ask your network's people about the name {host!r}, or correct host in site.toml"
        return Check(name, f"{host}: {error}", False, hint)
    return Check(name, f"{host}: {', '.join(sorted(addresses))}", True)


def _port(name: str, folder: SiteFolder) -> Check:
    place = f"{folder.settings.host}:{folder.settings.port}"
    try:
        _connected(folder).close()
    except OSError as error:
        hint = f"ask whether the server is started; let outgoing TCP to {place} through the firewall"
        return Check(name, f"{place}: {error.strerror or error}", False, hint)
    return Check(name, f"{place} answers", True)


def _tls(name: str, folder: SiteFolder) -> Check:
    try:
        with (
            _connected(folder) as plain,
            _client_context(folder).wrap_socket(plain, server_hostname=folder.settings.host) as secured,
        ):
            certificate = colons(secured.getpeercert(binary_form=True) or b"")
            return Check(name, f"{secured.version()}, certificate {certificate}", True)
    except MedfedError as error:
        return Check(name, error.what, False, error.hint or "")
    except ssl.SSLCertVerificationError as error:
        hint = "do not join: this is not the server of the invitation, or its certificate is bad; ask its people"
        return Check(name, f"the server's certificate is refused: {error.verify_message}", False, hint)
    except OSError as error:
        hint = "something else answers at this port, or a device in between breaks TLS; check host and port"
        return Check(name, f"no TLS: {error.strerror or error}", False, hint)


def _clock(name: str, folder: SiteFolder) -> Check:
    host, port = folder.settings.host, folder.settings.port
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=_client_context(folder))
    try:
        connection.request("HEAD", "/")
        theirs = parsedate_to_datetime(connection.getresponse().getheader("Date") or "")
    except (OSError, ValueError, http.client.HTTPException):
        return Check(name, "the server gave no time", False, "ask its people whether it is started and up to date")
    finally:
        connection.close()
    skew = (datetime.now(UTC) - theirs).total_seconds()
    hint = "requests are signed with the time: set this machine's clock by NTP, or have the server's set"
    return Check(name, f"{skew:+.0f} s from the server's", abs(skew) <= SKEW_SECONDS, hint)


def _connected(folder: SiteFolder) -> socket.socket:
    return socket.create_connection((folder.settings.host, folder.settings.port), TIMEOUT_SECONDS)
