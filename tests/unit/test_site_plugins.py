"""Plugins at a hospital: the invitation names their content, the policy allows it, and nothing else is executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medfed.core import plugins
from medfed.core.errors import PluginError, PolicyError, SiteError
from medfed.sites.federation import FederationFolder
from medfed.sites.folder import SiteFolder
from medfed.sites.invitation import Invitation, invited_study, load_invited
from medfed.sites.policy import Policy, allowed_plugins, policy_for
from support.registries import untouched
from support.site_toys import HOST, STUDY, medfed, study_file

PLUGIN = """
from typing import ClassVar

import medfed

open({trace!r}, "a").close()


@medfed.register
class Half(medfed.Algorithm):
    name: ClassVar[str] = "site-avg"
    beta: float = 0.5
"""
Shell = Callable[..., int]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with untouched():
        yield


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Run the command as a process of its own would: what others loaded is unknown to it."""

    def run(*words: str | Path) -> int:
        with untouched():
            return medfed(monkeypatch, *words)

    return run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A file that the plugin makes when it is executed."""
    return tmp_path / "executed"


@pytest.fixture
def plugin(tmp_path: Path, trace: Path) -> Path:
    path = tmp_path / "half.py"
    path.write_text(PLUGIN.format(trace=str(trace)), encoding="utf-8")
    return path


@pytest.fixture
def invited(tmp_path: Path, plugin: Path, shell: Shell) -> Path:
    """The invitation to a study whose algorithm is the plugin's."""
    study = study_file(tmp_path, STUDY.replace('"fedavg"', '"site-avg"'))
    fed = tmp_path / "fed"
    assert shell("federation", "init", fed, "--study", study, "--host", HOST, "--plugin", plugin) == 0
    assert shell("federation", "invite", fed) == 0
    return fed / "invitation"


def join(shell: Shell, invited: Path, *words: str | Path) -> int:
    data, hospital = invited.parents[1] / "data", invited.parents[1] / "hospital"
    data.mkdir(exist_ok=True)
    parts = [word for part in ("encoders", "heads", "buffers") for word in ("--may-leave", part)]
    given = ("--name", "site-0", "--data-root", data, "--invitation", invited, *parts, *words)
    return shell("site", "init", hospital, *given)


def test_an_invitation_names_content_and_holds_no_code(invited: Path, plugin: Path) -> None:
    assert Invitation.load(invited).plugins == {"half.py": plugins.examine(plugin).sha256}
    assert not [path for path in invited.iterdir() if b"class Half" in path.read_bytes()]
    assert FederationFolder.load(invited.parent).settings.plugins == (str(plugin),)


def test_a_site_needs_the_plugins_file(invited: Path, shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert join(shell, invited) == 1
    told = capsys.readouterr().err
    assert "the study needs plugins that are not loaded here: half.py (sha256:" in told
    assert "pass --plugin FILE" in told


def test_a_file_that_the_invitation_does_not_name_is_not_executed(invited: Path, plugin: Path, trace: Path) -> None:
    trace.unlink()
    other = plugin.with_name("other.py")
    other.write_text(plugin.read_text() + "# more\n")
    with pytest.raises(SiteError, match=r"the invitation does not name the plugin other\.py") as caught:
        load_invited(Invitation.load(invited), [str(other)])
    assert "it names half.py" in str(caught.value.hint)
    assert not trace.exists()


def test_a_policy_agrees_to_the_content_and_a_changed_file_is_not_executed(
    invited: Path, plugin: Path, trace: Path, shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert join(shell, invited, "--plugin", plugin) == 0
    hospital = invited.parents[1] / "hospital"
    content = plugins.examine(plugin).sha256
    assert allowed_plugins(hospital / "policy.toml") == (content,)
    assert f'plugins = ["{content}"]' in (hospital / "policy.toml").read_text()
    assert shell("site", "doctor", hospital, "--offline", "--skip-data") == 0
    with untouched():
        SiteFolder.load(hospital).check()

    trace.unlink()
    before = plugin.read_text()
    plugin.write_text(before + "# changed\n")
    with untouched(), pytest.raises(PluginError, match="not allowed here") as caught:
        SiteFolder.load(hospital)
    assert plugins.examine(plugin).sha256 in str(caught.value.hint)
    assert not trace.exists()

    plugin.write_text(before)
    policy = hospital / "policy.toml"
    policy.write_text(policy.read_text().replace(f'plugins = ["{content}"]', "plugins = []"))
    capsys.readouterr()
    assert shell("site", "doctor", hospital, "--offline", "--skip-data") == 1
    assert "this plugin is not allowed here" in capsys.readouterr().err
    assert not trace.exists()


def test_a_study_with_a_plugin_that_the_policy_lacks_is_refused(invited: Path, plugin: Path) -> None:
    plugins.load(plugin)
    study = invited_study(invited, Invitation.load(invited))
    policy = policy_for(study, ["encoders", "heads", "buffers"], 5)
    policy.check_study(study)
    with pytest.raises(PolicyError, match=r"the study uses the plugin half\.py") as caught:
        policy.model_copy(update={"plugins": ()}).check_study(study)
    assert caught.value.where == "policy.toml, plugins"
    assert plugins.examine(plugin).sha256 in str(caught.value.hint)


def test_a_policy_without_plugins_allows_none(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('tasks = ["any"]\nalgorithms = ["any"]\nstudies = ["any"]\n')
    assert Policy.load(path).plugins == allowed_plugins(path) == ()
    path.write_text(path.read_text() + 'plugins = ["half.py"]\n')
    with pytest.raises(SiteError, match=r"plugins\.0"):
        allowed_plugins(path)
