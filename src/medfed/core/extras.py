"""Optional parts of medfed: whether their packages are here, in versions that medfed works with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from medfed.core.errors import MedfedError


def require_extra(extra: str, purpose: str) -> None:
    """Refuse where a package of an extra is missing, or has a version that medfed does not work with.

    Args:
        extra: its name in pyproject.toml.
        purpose: what needs it, for the message.

    Raises:
        MedfedError: naming the package and what is installed.
    """
    for package in requirements_of(extra):
        try:
            installed = version(package.name)
        except PackageNotFoundError:
            raise _missing(extra, f"{purpose} need {package.name}, which is not installed") from None
        if not package.specifier.contains(installed, prereleases=True):
            what = f"{purpose} need {package.name}{package.specifier}, and {package.name} {installed} is installed"
            raise _missing(extra, what)


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an extra; it names no package of our own."""
    return " ".join(["pip install", *(f'"{package.name}{package.specifier}"' for package in requirements_of(extra))])


def requirements_of(extra: str) -> Iterator[Requirement]:
    """Yield what the installed medfed says an extra needs."""
    try:
        texts = requires("medfed") or []
    except PackageNotFoundError:  # a checkout that was not installed: the imports say what is missing
        return
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            yield requirement


def _missing(extra: str, what: str) -> MedfedError:
    return MedfedError(what, hint=install_hint(extra))
