"""``medfed federation`` (at the server) and ``medfed site`` (at a hospital): verbs without logic.

Heavy imports stay inside the verbs. Exit statuses of ``start`` and ``join``: :mod:`medfed.sites.status`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from medfed.cli.options import Plugins
from medfed.core.errors import MedfedError
from medfed.core.progress import Reporter

if TYPE_CHECKING:
    from medfed.core.diagnosis import Check
    from medfed.sites.credentials import Certificates
    from medfed.sites.federation import FederationFolder
    from medfed.sites.folder import SiteFolder

ENDINGS = (
    "Exit status: 0 done, 1 error, 3 too few sites, 130 interrupted, 143 SIGTERM. "
    "Finished rounds are kept; the same command goes on from there."
)
federation_app = typer.Typer(
    no_args_is_help=True, help="The server of a federation: its folder, its registered hospitals, and the run."
)
site_app = typer.Typer(
    no_args_is_help=True, help="A hospital of a federation: its folder, key, policy and audit log, and the run."
)

FederationDir = Annotated[Path, typer.Argument(metavar="DIR", help="The federation's folder")]
SiteDir = Annotated[Path, typer.Argument(metavar="DIR", help="The hospital's folder")]
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="The hospital's name, as in its site.toml")]
MAY_LEAVE = "encoders (default), heads, decoders, buffers, state; repeat it for several"


@federation_app.command(name="init")
def init_federation_folder(
    folder: FederationDir,
    study: Annotated[Path, typer.Option(help="A study with partition.scheme = 'sites'; it is copied")],
    host: Annotated[str, typer.Option(help="Name or address that hospitals connect to")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port that hospitals connect to")] = 9092,
    data_root: Annotated[
        Path | None, typer.Option(help="The server's own data; by default the study's synthetic twins")
    ] = None,
    min_sites: Annotated[int, typer.Option(min=0, help="Fewest hospitals of a round; 0: all registered ones")] = 0,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Another name or address for the trial certificate")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that the trial certificate is valid")] = 365,
    own_certificate: Annotated[
        Path | None, typer.Option(help="Your server certificate (PEM, intermediates after it)")
    ] = None,
    own_key: Annotated[Path | None, typer.Option(help="Its private key (PEM, no passphrase)")] = None,
    own_ca: Annotated[Path | None, typer.Option(help="The root CA that hospitals shall trust")] = None,
    plugins: Plugins = None,
) -> None:
    """Write a federation's folder: federation.toml, a copy of the study, and a certificate (a trial's, or yours)."""
    _require_extra()
    from medfed.core.plugins import examine
    from medfed.sites import credentials
    from medfed.sites.federation import CERTIFICATES, FederationSettings, init_federation
    from medfed.sites.settings import checked

    given = _given_certificate(own_ca, own_certificate, own_key)
    if given:
        credentials.check_certificate(given, host)
    values = {"host": host, "port": port, "min_sites": min_sites, "data_root": data_root and data_root.resolve()}
    sources = [examine(reference).source for reference in plugins or []]
    made = init_federation(folder, checked(FederationSettings, {**values, "plugins": sources}), study)
    place = folder / CERTIFICATES
    files = credentials.copy_given(place, given) if given else credentials.write_trial(place, host, names or [], days)
    fingerprint = credentials.certificate_fingerprint(credentials.load_authority(files.ca))
    reporter = Reporter(Console())
    reporter.say(f"federation of the study {made.study().name!r}: {folder}")
    reporter.say(f"hospitals connect to {host}:{port}; deadlines are in {folder / 'federation.toml'}")
    reporter.say(f"CA fingerprint, to be read out by telephone:\n  {fingerprint}")
    reporter.say(f"next: medfed federation invite {folder}")


@federation_app.command(name="add")
def add_site(
    folder: FederationDir,
    name: SiteName,
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The hospital's public key (its node.pub)")],
) -> None:
    """Register a hospital: its name and its public key."""
    fingerprint = _federation(folder).add(name, key)
    reporter = Reporter(Console())
    reporter.say(f"{name}: key fingerprint\n  {fingerprint}")
    reporter.say("compare it by telephone with the one that `medfed site init` printed there")


@federation_app.command(name="remove")
def remove_site(folder: FederationDir, name: SiteName) -> None:
    """Forget a hospital's key. The server refuses the hospital from its next start on."""
    _federation(folder).remove(name)
    Reporter(Console()).say(f"{name}: removed; start the federation again if it runs")


@federation_app.command()
def invite(
    folder: FederationDir,
    out: Annotated[Path | None, typer.Option(help="Folder of the invitation; default: DIR/invitation")] = None,
) -> None:
    """Write the invitation for hospitals: CA certificate, study, address. It holds no secret."""
    Reporter(Console()).say(f"send this folder to every hospital: {_federation(folder).invite(out)}")


@federation_app.command(help=f"Run the study over the registered hospitals, or continue a run.\n\n{ENDINGS}")
def start(folder: FederationDir) -> None:
    """Run the study over the registered hospitals, or continue a run."""
    chosen = _federation(folder)
    from medfed.sites.credentials import check_certificate
    from medfed.sites.status import noted, only_one, stopped_by_sigterm

    chosen.check_sites()
    check_certificate(chosen.certificates, chosen.settings.host)
    with only_one(folder), noted(folder), stopped_by_sigterm():
        from medfed.sites.server import serve

        serve(chosen)


@federation_app.command()
def status(folder: FederationDir) -> None:
    """Show the state of the run, while it runs and afterwards: round, hospitals, last failures, run folder."""
    from medfed.sites.status import status_lines

    reporter = Reporter(Console())
    for line in status_lines(folder):
        reporter.say(line)


@site_app.command(name="init")
def init_site_folder(
    folder: SiteDir,
    name: Annotated[str, typer.Option(help="The hospital's name")],
    data_root: Annotated[Path, typer.Option(help="Folder of the datasets in native layout")],
    invitation: Annotated[Path, typer.Option(help="The server's invitation, a folder")],
    public_root: Annotated[
        Path | None, typer.Option(help="The server's public datasets, if the algorithm needs them")
    ] = None,
    ca_fingerprint: Annotated[str | None, typer.Option(help="The CA's fingerprint, as heard by telephone")] = None,
    may_leave: Annotated[list[str] | None, typer.Option(help=MAY_LEAVE)] = None,
    min_examples: Annotated[int, typer.Option(min=1, help="Fewest examples of a trained task")] = 10,
    plugins: Annotated[
        list[str] | None, typer.Option("--plugin", help="A plugin that the invitation names: a .py file or a module")
    ] = None,
) -> None:
    """Write a hospital's folder: site.toml, policy.toml, a new key pair. Nothing is sent."""
    _require_extra()
    from medfed.sites.credentials import key_fingerprint, load_node_key
    from medfed.sites.folder import SiteSettings, init_site
    from medfed.sites.invitation import Invitation, invited_study, load_invited
    from medfed.sites.policy import parts_sent, policy_for
    from medfed.sites.settings import checked

    facts = Invitation.load(invitation)
    sources = load_invited(facts, plugins or [])
    study = invited_study(invitation, facts)
    places = {"data_root": data_root.resolve(), "public_root": public_root and public_root.resolve()}
    server = {"host": facts.host, "port": facts.port, "ca_fingerprint": ca_fingerprint or facts.ca_fingerprint}
    settings = checked(SiteSettings, {"name": name, **places, **server, "plugins": sources})
    made = init_site(folder, settings, invitation, policy_for(study, may_leave or ["encoders"], min_examples))
    reporter = Reporter(Console())
    reporter.say(f"site {name!r}: {folder}")
    reporter.say(f"CA fingerprint; compare it with the server's people by telephone:\n  {settings.ca_fingerprint}")
    reporter.say(f"send them the public key {made.public_key}:\n  {made.public_key.read_text().strip()}")
    reporter.say(f"its fingerprint:\n  {key_fingerprint(load_node_key(made.private_key).public_key())}")
    for part, tensor in parts_sent(study).items():
        if part not in made.policy.may_leave:
            reporter.say(f"the study sends {part} (tensor {tensor}), which {folder / 'policy.toml'} does not allow yet")
    reporter.say(f"next: read {folder / 'policy.toml'}, then medfed site doctor {folder}")


@site_app.command(name="doctor")
def doctor_site(
    folder: SiteDir,
    skip_data: Annotated[bool, typer.Option("--skip-data", help="Do not open the files of the datasets")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not contact the server")] = False,
) -> None:
    """Check whether this hospital can join: policy, key, CA, versions, disk, data, and the way to the server."""
    chosen, reporter = _site(folder), Reporter(Console())
    from medfed.sites.doctor import local_checks, server_checks

    good = _print_checks(local_checks(chosen, reporter, data=not skip_data), reporter)
    good = (offline or _print_checks(server_checks(chosen), reporter)) and good
    if not good:
        raise typer.Exit(1)


@site_app.command(help=f"Join the federation and train on its server's requests until Ctrl-C.\n\n{ENDINGS}")
def join(
    folder: SiteDir,
    once: Annotated[
        bool, typer.Option("--once", help="Leave when the run is over; default: wait for the next")
    ] = False,
    keep_decoded: Annotated[
        bool, typer.Option("--decoded-cache", help="Keep decoded patients' data in DIR/cache for the next start")
    ] = False,
) -> None:
    """Join the federation and train on its server's requests until Ctrl-C."""
    chosen = _site(folder)
    from medfed.sites.status import only_one, stopped_by_sigterm

    chosen.check()
    with only_one(folder), stopped_by_sigterm():
        from medfed.sites.client import join as answer

        answer(chosen, once=once, keep_decoded=keep_decoded)


@site_app.command(name="egress-report")
def egress_report(folder: SiteDir) -> None:
    """Print what left this hospital, by run and round. Exit status 1: the hash chain of the audit log is broken."""
    from medfed.sites.audit import LOG, AuditLog, egress_rows

    verdict = AuditLog(folder / LOG).verify()
    rows = egress_rows(verdict.entries)
    table = Table("run", "round", "messages", "bytes", "examples", "metrics", "tensors by component")
    for row in rows:
        examples = "" if row.num_examples is None else str(row.num_examples)
        columns = (examples, ", ".join(row.metrics), _counted(row.tensors))
        table.add_row(row.run, str(row.round), _counted(row.kinds), f"{row.num_bytes:,}", *columns)
    reporter = Reporter(Console())
    reporter.console.print(table)
    reporter.say(f"in all: {sum(row.num_bytes for row in rows):,} bytes in {len(verdict.entries)} entries")
    if not verdict.ok:
        reporter.say(f"THE CHAIN IS BROKEN at line {verdict.line}: {verdict.reason}")
        raise typer.Exit(1)
    if verdict.partial:
        reporter.say(f"a crash left {verdict.partial} bytes of an unfinished line; the next entry removes them")
    reporter.say(f"the chain holds; note its last hash elsewhere: {verdict.last}")


def _given_certificate(*files: Path | None) -> Certificates | None:
    """Return the files (CA, certificate, key) of a given certificate; None where none of them is given."""
    from medfed.sites.credentials import Certificates

    given = [file for file in files if file is not None]
    if given and len(given) < len(files):
        hint = "pass --own-certificate, --own-key and --own-ca, or none of them"
        raise MedfedError("your own certificate comes with its key and its CA", hint=hint)
    return Certificates(*given) if given else None


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _print_checks(checks: Iterable[Check], reporter: Reporter) -> bool:
    good = True
    for check in checks:
        reporter.say(f"{'ok      ' if check.ok else 'PROBLEM '} {check.name}: {check.value}")
        if not check.ok:
            reporter.say(f"         next step: {check.hint}")
            good = False
    return good


def _federation(folder: Path) -> FederationFolder:
    _require_extra()
    from medfed.sites.federation import FederationFolder

    return FederationFolder.load(folder)


def _site(folder: Path) -> SiteFolder:
    _require_extra()
    from medfed.sites.folder import SiteFolder

    return SiteFolder.load(folder)


def _require_extra() -> None:
    from medfed.core.diagnosis import require_extra

    require_extra("flower", "federations of hospitals")
