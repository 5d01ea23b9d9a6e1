"""deploy/: the scripts are bash, and the containers' file keeps hospitals apart. Containers are not started here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SITES = sorted(name for name in SERVICES if name.startswith("site-"))


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_bash(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_three_hospitals_share_a_network_with_the_server_alone() -> None:
    assert len(SITES) == 3
    for site in SITES:
        (own,) = SERVICES[site]["networks"]
        assert COMPOSE["networks"][own] == {"internal": True}, "no way out of it"
        assert [name for name, service in SERVICES.items() if own in service.get("networks", [])] == ["server", site]
    assert all("networks" in service or service["network_mode"] == "none" for service in SERVICES.values())


def test_only_the_servers_port_is_published() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["server"]
    assert SERVICES["server"]["ports"] == ["{0}:{0}".format(SERVICES["server"]["environment"]["PORT"])]


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_no_service_has_root_or_writes_outside_its_volumes(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["user"].split(":")[0] not in ("0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


def test_patients_are_mounted_read_only_and_where_only_their_hospital_sees_them() -> None:
    seen: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for volume, *rest in (mount.split(":") for mount in service["volumes"]):
            assert volume in COMPOSE["volumes"], f"{name}: a volume of the file, no folder of the machine"
            if volume.startswith("data-") and name != "data":
                seen.setdefault(volume, []).append(name)
                assert rest[1:] == ["ro"], f"{name}: {volume}"
    assert sorted(seen.values()) == [["server"], *([site] for site in SITES)]


def test_what_two_services_share_is_written_by_one() -> None:
    writers: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for volume, *rest in (mount.split(":") for mount in service["volumes"]):
            if rest[1:] != ["ro"]:
                writers.setdefault(volume, []).append(name)
    assert {volume: names for volume, names in writers.items() if len(names) > 1} == {}


def test_the_files_the_services_start_are_in_the_image() -> None:
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "COPY deploy/*.sh /medfed/deploy/" in image
    assert re.search(r"^USER medfed$", image, re.MULTILINE)
    for name in ("server", *SITES):
        assert (DEPLOY / Path(SERVICES[name]["command"][0]).name).is_file()


def keeping(tmp_path: Path, command: str) -> subprocess.Popen[str]:
    """Start keep.sh around a command in ``tmp_path``."""
    text = f'. "{DEPLOY}/keep.sh"; status=0; keep "0 130 143" bash -c "$1" || status=$?; exit "$status"'
    env = {**os.environ, "FIRST_PAUSE_SECONDS": "0", "LONGEST_PAUSE_SECONDS": "1"}
    return subprocess.Popen(
        ["bash", "-c", text, "keep", command], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )


def test_what_fails_is_started_again_until_it_ends_well(tmp_path: Path) -> None:
    process = keeping(tmp_path, "echo >>tries; [ $(wc -l <tries) -ge 3 ] || exit 7")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert said.count("exit status 7; again in") == 2


def test_a_signal_is_passed_on_and_ends_it(tmp_path: Path) -> None:
    child = "trap 'echo told >got; exit 143' TERM; echo >ready; while :; do sleep 0.1; done"
    process = keeping(tmp_path, child)
    limit = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "got").read_text() == "told\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_trial_ends_with_the_weights_of_one_process(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the script calls `medfed`
    command, env = [DEPLOY / "trial.sh", tmp_path / "trial"], {**os.environ, "PATH": path}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "the same weights, bit for bit" in ran.stdout
    assert ran.stdout.count("the chain holds") == 3
