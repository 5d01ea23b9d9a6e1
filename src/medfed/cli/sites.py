"""``medfed federation`` (at the server) and ``medfed site`` (at a hospital): verbs without logic.

Heavy imports stay inside the verbs. Exit statuses of ``start`` and ``join``: :mod:`medfed.sites.status`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfed.core.errors import MedfedError
from medfed.core.progress import Reporter

if TYPE_CHECKING:
    from medfed.core.diagnosis import Check
    from medfed.sites.certificates import Certificates

ENDINGS = (
    "Exit status: 0 done, 1 error, 3 too few sites, 130 interrupted, 143 SIGTERM. "
    "What was finished is kept; the same command goes on from there."
)

federation_app = typer.Typer(
    no_args_is_help=True, help="A federation's server: its folder, the sites it admits, and the run over them."
)

site_app = typer.Typer(
    no_args_is_help=True, help="A hospital: its folder, key, policy and audit log, and joining a federation."
)

FederationDir = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder")]
SiteDir = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder")]


@federation_app.command(name="init")
def init_federation_folder(
    folder: FederationDir,
    study: Annotated[Path, typer.Option("--study", help="A study with partition.scheme = 'sites'; it is copied")],
    host: Annotated[str, typer.Option("--host", help="Name or address hospitals connect to")],
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="TCP port hospitals connect to")] = 9092,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="The server's own data; none: the study's synthetic twins")
    ] = None,
    min_sites: Annotated[
        int, typer.Option("--min-sites", min=0, help="Fewest sites to start and go on with; 0: all registered ones")
    ] = 0,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Another name or address for the trial certificate")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long the trial certificate is valid")] = 365,
    own_certificate: Annotated[
        Path | None, typer.Option("--own-certificate", help="Your server certificate (PEM, intermediates after it)")
    ] = None,
    own_key: Annotated[Path | None, typer.Option("--own-key", help="Its private key (PEM, no passphrase)")] = None,
    own_ca: Annotated[Path | None, typer.Option("--own-ca", help="The root CA that hospitals shall trust")] = None,
) -> None:
    """Write a federation's folder: federation.toml, a copy of the study, a certificate (a trial's, or your own)."""
    _require_extra()
    from medfed.sites.certificates import (
        certificate_fingerprint,
        check_certificate,
        copy_own,
        load_authority,
        write_trial,
    )
    from medfed.sites.federation import CERTIFICATES, FederationSettings, init_federation

    own = _own_certificate(own_certificate, own_key, own_ca)
    if own:
        check_certificate(own, host)
    root = data_root.resolve() if data_root else None
    made = init_federation(folder, FederationSettings(host=host, port=port, min_sites=min_sites, data_root=root), study)
    files = copy_own(folder / CERTIFICATES, own) if own else write_trial(folder / CERTIFICATES, host, names or [], days)
    reporter = Reporter(Console())
    reporter.say(f"federation of the study {made.study().name!r}: {folder}")
    reporter.say(f"hospitals connect to {host}:{port}; deadlines stand in {folder / 'federation.toml'}")
    reporter.say(f"CA fingerprint, to be read out by telephone:\n  {certificate_fingerprint(load_authority(files.ca))}")
    reporter.say(f"next: medfed federation invite {folder}")


@federation_app.command(name="add")
def add_site(
    folder: FederationDir,
    name: Annotated[str, typer.Argument(metavar="SITE", help="The site's name, as in its site.toml")],
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The public key the site sent (its node.pub)")],
) -> None:
    """Admit a site: register its public key under its name."""
    _require_extra()
    from medfed.sites.federation import FederationFolder

    fingerprint = FederationFolder.load(folder).add(name, key)
    reporter = Reporter(Console())
    reporter.say(f"{name}: key fingerprint\n  {fingerprint}")
    reporter.say("compare it by telephone with what `medfed site init` printed there")


@federation_app.command(name="remove")
def remove_site(
    folder: FederationDir, name: Annotated[str, typer.Argument(metavar="SITE", help="The site's name")]
) -> None:
    """Forget a site's key; it is refused from the next start on."""
    _require_extra()
    from medfed.sites.federation import FederationFolder

    FederationFolder.load(folder).remove(name)
    Reporter(Console()).say(f"{name}: removed; start the federation again if it runs")


@federation_app.command()
def invite(
    folder: FederationDir,
    out: Annotated[Path | None, typer.Option("--out", help="Write the bundle here; default: DIR/invitation")] = None,
) -> None:
    """Write the bundle that hospitals are given: CA certificate, study, facts. It holds no secret."""
    _require_extra()
    from medfed.sites.federation import FederationFolder

    Reporter(Console()).say(f"send this folder to every hospital: {FederationFolder.load(folder).invite(out)}")


@federation_app.command(help=f"Run the study over the registered sites, or go on where it stopped.\n\n{ENDINGS}")
def start(folder: FederationDir) -> None:
    """Run the study over the registered sites, or go on where it stopped."""
    _require_extra()
    from medfed.sites.certificates import check_certificate
    from medfed.sites.federation import FederationFolder
    from medfed.sites.status import noted, only_one, stopped_by_sigterm

    chosen = FederationFolder.load(folder)
    chosen.check_sites()
    check_certificate(chosen.certificates, chosen.host)
    with only_one(folder), noted(folder), stopped_by_sigterm():
        from medfed.sites.server import serve

        serve(chosen)


@federation_app.command()
def status(folder: FederationDir) -> None:
    """Say where the run stands: round, sites, last failures, run folder; while it runs and afterwards."""
    from medfed.sites.status import status_lines

    reporter = Reporter(Console())
    for line in status_lines(folder):
        reporter.say(line)


@site_app.command(name="init")
def init_site_folder(
    folder: SiteDir,
    name: Annotated[str, typer.Option("--name", help="The site's name")],
    data_root: Annotated[Path, typer.Option("--data-root", help="Folder of the site's datasets in native layout")],
    invitation: Annotated[Path, typer.Option("--invitation", help="The folder that the server's people sent")],
    public_root: Annotated[
        Path | None, typer.Option("--public-root", help="The server's public datasets, where the algorithm needs them")
    ] = None,
    ca_fingerprint: Annotated[
        str | None, typer.Option("--ca-fingerprint", help="The CA's fingerprint, as heard by telephone")
    ] = None,
    may_leave: Annotated[
        list[str] | None,
        typer.Option("--may-leave", help="encoders (default), heads, decoders, buffers, state; give it several times"),
    ] = None,
    min_examples: Annotated[int, typer.Option("--min-examples", min=1, help="Train no task with fewer examples")] = 10,
) -> None:
    """Write a site's folder: site.toml, policy.toml, a new key pair. Nothing is sent."""
    _require_extra()
    from medfed.sites.folder import SiteSettings, init_site
    from medfed.sites.invitation import Invitation, invited_study
    from medfed.sites.keys import key_fingerprint, load_node_key
    from medfed.sites.policy import parts_sent, policy_for
    from medfed.sites.settings import checked

    facts = Invitation.load(invitation)
    study = invited_study(invitation, facts)
    settings = checked(
        SiteSettings,
        {
            "name": name,
            "data_root": data_root.resolve(),
            "public_root": public_root.resolve() if public_root else None,
            "host": facts.host,
            "port": facts.port,
            "ca_fingerprint": ca_fingerprint or facts.ca_fingerprint,
        },
    )
    made = init_site(folder, settings, invitation, policy_for(study, may_leave or ["encoders"], min_examples))
    reporter = Reporter(Console())
    reporter.say(f"site {name!r}: {folder}")
    reporter.say(f"CA fingerprint; compare it with the server's people by telephone:\n  {settings.ca_fingerprint}")
    reporter.say(f"send them the public key {made.public_key}:\n  {made.public_key.read_text().strip()}")
    fingerprint = key_fingerprint(load_node_key(made.private_key).public_key())
    reporter.say(f"its fingerprint:\n  {fingerprint}")
    for part, tensor in parts_sent(study).items():
        if part not in made.policy.may_leave:
            reporter.say(f"the study sends {part} (tensor {tensor}), which {folder / 'policy.toml'} does not allow yet")
    reporter.say(f"next: read {folder / 'policy.toml'}, then medfed site doctor {folder}")


@site_app.command(name="doctor")
def doctor_site(
    folder: SiteDir,
    skip_data: Annotated[bool, typer.Option("--skip-data", help="Do not open the data's files")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not contact the server")] = False,
) -> None:
    """Say whether this site can join: policy, key, CA, versions, disk, data; DNS, port, TLS and clock of the server."""
    _require_extra()
    from medfed.sites.doctor import local_checks, server_checks
    from medfed.sites.folder import SiteFolder

    chosen, reporter = SiteFolder.load(folder), Reporter(Console())
    good = _print_checks(local_checks(chosen, reporter, data=not skip_data), reporter)
    good = (offline or _print_checks(server_checks(chosen), reporter)) and good
    if not good:
        raise typer.Exit(1)


@site_app.command(help=f"Join the federation and answer its server until it is told to stop.\n\n{ENDINGS}")
def join(
    folder: SiteDir,
    once: Annotated[bool, typer.Option("--once", help="Leave when the run is over; else wait for the next")] = False,
    keep_decoded: Annotated[
        bool, typer.Option("--decoded-cache", help="Keep decoded patients' data in DIR/cache for the next start")
    ] = False,
) -> None:
    """Join the federation and answer its server until it is told to stop."""
    _require_extra()
    from medfed.sites.folder import SiteFolder
    from medfed.sites.status import only_one, stopped_by_sigterm

    chosen = SiteFolder.load(folder)
    chosen.check()
    with only_one(folder), stopped_by_sigterm():
        from medfed.sites.client import join as answer

        answer(chosen, once=once, keep_decoded=keep_decoded)


@site_app.command(name="egress-report")
def egress_report(folder: SiteDir) -> None:
    """Print what left this site, by run and round; exit status 1 if the audit log's hash chain is broken."""
    from medfed.sites.audit import LOG, egress_rows, verify

    found = verify(folder / LOG)
    rows = egress_rows(found.entries)
    table = Table("run", "round", "what", "bytes", "examples told", "numbers told", "tensors by component")
    for row in rows:
        told = "" if row.num_examples is None else str(row.num_examples)
        columns = (told, ", ".join(row.metrics), _counted(row.tensors))
        table.add_row(row.run, str(row.round), _counted(row.kinds), f"{row.num_bytes:,}", *columns)
    reporter = Reporter(Console())
    reporter.console.print(table)
    reporter.say(f"in all: {sum(row.num_bytes for row in rows):,} bytes in {len(found.entries)} entries")
    if not found.ok:
        reporter.say(f"THE CHAIN IS BROKEN at line {found.line}: {found.reason}")
        raise typer.Exit(1)
    if found.partial:
        reporter.say(f"a crash left {found.partial} bytes of an unfinished line; the next entry notes and removes them")
    reporter.say(f"the chain holds; note its last hash elsewhere: {found.last}")


def _own_certificate(certificate: Path | None, key: Path | None, ca: Path | None) -> Certificates | None:
    """Return the files of one's own certificate; None where none of them is given."""
    from medfed.sites.certificates import Certificates

    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None or ca is None:
        raise MedfedError(
            "one's own certificate comes with its key and its CA",
            hint="pass --own-certificate, --own-key and --own-ca, or none of them",
        )
    return Certificates(ca, certificate, key)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _print_checks(checks: Iterable[Check], reporter: Reporter) -> bool:
    good = True
    for check in checks:
        reporter.say(f"{'ok      ' if check.ok else 'PROBLEM '} {check.name}: {check.found}")
        if not check.ok:
            reporter.say(f"         next step: {check.hint}")
        good = good and check.ok
    return good


def _require_extra() -> None:
    """Refuse where the extra for networks is not installed."""
    for package in ("cryptography", "flwr"):
        if find_spec(package) is None:
            raise MedfedError(
                f"federations of sites need {package}, which is not installed", hint='pip install "medfed[flower]"'
            )
