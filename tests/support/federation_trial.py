"""A real federation of processes for tests: a server and its sites on a free port, with TLS, keys, logs and faults.

Processes are forked from a server that has imported medfed once, so each starts at once. Every wait is bounded, and
:meth:`Trial.close` ends what is left.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

from medfed.core.progress import Reporter
from medfed.records.folder import RunFolder
from medfed.sites.credentials import certificate_fingerprint, load_authority, write_trial
from medfed.sites.federation import Deadlines, FederationFolder, FederationSettings, init_federation
from medfed.sites.folder import SiteFolder, SiteSettings, init_site
from medfed.sites.policy import Part, policy_for
from medfed.sites.status import STATUS, Status, read_status
from medfed.study.study import Study, load_study
from medfed.twins.writing import write_folders
from support.clocks import BOUND, read_clock_from
from support.planted_faults import Fault
from support.processes import RELEASED, Process, clock_of

STUDY = """
name = "trial"
job = "benchmark"
train = ["mp"]
baselines = []
algorithm = {name = "scaffold", option = "II"}
[twins]
num_patients = 60
[split]
ratios = [7, 0, 0, 3]
[partition]
scheme = "sites"
num_clients = 3
[rounds]
num_rounds = 3
[encoders.vitals]
name = "transformer"
dim = 8
num_layers = 1
[encoders.labs]
name = "transformer"
dim = 8
num_layers = 1
[encoders.input]
name = "transformer"
dim = 8
num_layers = 1
[encoders.output]
name = "transformer"
dim = 8
num_layers = 1
[client]
optimizer = "sgd"
lr = 0.05
batch_size = 16
[evaluation]
num_resamples = 20
watch_every = 0
"""
"""SCAFFOLD over three small sites: it keeps state at the sites, so a round done twice or left out would show."""
SITES = ("site-0", "site-1", "site-2")
DEADLINES = Deadlines(wait_for_sites_seconds=600, hello_seconds=600, train_seconds=600, evaluate_seconds=600)
"""No deadline passes by itself, see :meth:`Process.hurry`."""
GOODBYE = {"BYE_SECONDS": 120.0, "RETURN_SECONDS": 120.0}
"""Of ``medfed.sites.server``: nobody misses the goodbye because the machine is slow."""
HEARTBEAT = 1.0
"""Seconds between a site's heartbeats: a dead site's key is free again after twice as long."""
PATIENCE = 25.0
"""Seconds that the server waits for a site that missed two heartbeats."""


class Trial:
    """A federation's folders under ``root``, its processes, and what they leave.

    Args:
        root: a new folder.
        data: a data root, as :func:`medfed.twins.writing.write_folders` writes it for the study.
        cache: for twins and the tiny LLM.
        study: the study, TOML.
        deadlines: of the server.
        min_sites: fewest sites; 0 is all.
        heartbeat: seconds between heartbeats.
        patience: seconds that the server waits for a site that missed two of them.
        port: that the sites connect to, if not the server's own: a forwarder's.
        public: the sites have a copy of the server's folder, for algorithms that use public data.
    """

    def __init__(
        self,
        root: Path,
        data: Path,
        cache: Path,
        *,
        study: str = STUDY,
        sites: tuple[str, ...] = SITES,
        deadlines: Mapping[str, float] | None = None,
        min_sites: int = 0,
        heartbeat: float = HEARTBEAT,
        patience: float = PATIENCE,
        port: int | None = None,
        public: bool = False,
    ) -> None:
        self._public = public
        self.root, self.data, self.sites = root, data, sites
        self._heartbeat, self._patience = heartbeat, patience
        self.server_folder, self.port = root / "fed", free_port()
        self.study_path = root / "study.toml"
        self.study_path.write_text(study, encoding="utf-8")
        settings = FederationSettings(
            host="127.0.0.1",
            port=self.port,
            listen="127.0.0.1",
            min_sites=min_sites,
            data_root=data / "server",
            cache=cache,
            deadlines=DEADLINES.model_copy(update=dict(deadlines or {})),
        )
        init_federation(self.server_folder, settings, self.study_path)
        write_trial(self.server_folder / "certificates", "127.0.0.1")
        self._processes: list[Process] = []
        for site in sites:
            self._register(site, port or self.port)

    @property
    def study(self) -> Study:
        """The study."""
        return load_study(self.study_path)

    @property
    def status(self) -> Status:
        """What ``status.json`` of the server says."""
        return read_status(self.server_folder)

    @property
    def has_failure(self) -> bool:
        """Whether the server has noted that a site gave no usable answer."""
        return (self.server_folder / STATUS).exists() and bool(self.status.failures)

    @property
    def run(self) -> RunFolder:
        """The run's folder."""
        (found,) = (self.server_folder / "runs" / self.study.name).iterdir()
        return RunFolder(found)

    def server(self, *faults: Fault) -> Process:
        """Start the server."""
        return self.command("server", ["federation", "start", str(self.server_folder)], *faults)

    def site(self, name: str, *faults: Fault, once: bool = True) -> Process:
        """Start the site ``name``."""
        options = ["--once"] if once else []
        return self.command(name, ["site", "join", str(self.root / name), *options], *faults)

    def all_sites(self) -> list[Process]:
        """Start every site."""
        return [self.site(name) for name in self.sites]

    def command(self, name: str, arguments: list[str], *faults: Fault) -> Process:
        """Start ``medfed ARGUMENTS``; its log is ``<name>-<number>.log``."""
        log = self.root / f"{name}-{len(self._processes)}.log"
        is_server = arguments[0] == "federation"
        beats = self._patience if is_server else self._heartbeat, self._heartbeat
        process = Process(arguments, log, *faults, prepare=partial(_keep_time, *beats, clock_of(log)))
        self._processes.append(process)
        return process

    def said(self, arguments: list[str]) -> str:
        """Run ``medfed ARGUMENTS`` to its end and return what it said."""
        process = self.command("command", arguments)
        assert process.wait() == 0, process.told()
        return process.text

    def folder(self, site: str) -> SiteFolder:
        """Return a site's folder."""
        return SiteFolder.load(self.root / site)

    def egress(self, site: str) -> list[dict[str, Any]]:
        """Return the entries of a site's audit log."""
        path = self.folder(site).audit.path
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def logs(self) -> str:
        """Return what all processes said."""
        return "\n".join(process.told() for process in self._processes)

    def release(self) -> None:
        """Let processes go on that a fault holds."""
        (self.root / RELEASED).touch()

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.end()

    def _register(self, site: str, port: int) -> None:
        bundle = FederationFolder.load(self.server_folder).invite()
        settings = SiteSettings(
            name=site,
            data_root=self.data / site,
            public_root=self.data / "server" if self._public else None,
            host="127.0.0.1",
            port=port,
            ca_fingerprint=certificate_fingerprint(load_authority(bundle / "ca.pem")),
        )
        made = init_site(self.root / site, settings, bundle, policy_for(self.study, get_args(Part), 1))
        FederationFolder.load(self.server_folder).add(site, made.public_key)


def written_folders(study: str, out: Path) -> Path:
    """Write the synthetic folders of a study's server and sites into ``out`` and return it."""
    out.mkdir(parents=True)
    path = out.with_suffix(".toml")
    path.write_text(study, encoding="utf-8")
    write_folders(load_study(path), out, Reporter.silent())
    return out


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _keep_time(seconds: float, admitted: float, clock: Path) -> None:
    """Let the network's heartbeats be faster than Flower's 10 s, and deadlines pass when the test says so."""
    from flwr.superlink.servicer.fleet import fleet_handlers

    from medfed.sites import network, server, transport

    fleet_handlers.HEARTBEAT_MIN_INTERVAL = min(admitted, fleet_handlers.HEARTBEAT_MIN_INTERVAL)
    transport.HEARTBEAT_SECONDS, network.REFUSED_SECONDS = seconds, max(3 * seconds, BOUND)
    for name, value in GOODBYE.items():
        assert hasattr(server, name)
        setattr(server, name, value)
    read_clock_from(clock)
    goodbye = server.Hospitals.goodbye

    def short_goodbye(hospitals: server.Hospitals) -> None:
        transport.HEARTBEAT_SECONDS = admitted  # a site that has left has heard it: its answer is not waited for
        goodbye(hospitals)

    server.Hospitals.goodbye = short_goodbye  # type: ignore[method-assign]
