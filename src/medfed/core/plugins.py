"""Plugins: a file or an installed module that registers parts, without a line changed in the package.

``--plugin FILE_OR_MODULE`` names a plugin. Installed packages name theirs by entry points of the group :data:`GROUP`.
Those are loaded once a name is looked up that the package does not have. A run records the SHA-256 of the plugins
whose parts it uses. The content of a file is its bytes, that of a module all ``.py`` files of its package.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from medfed.core.code import MAIN
from medfed.core.errors import MedfedError, PluginError

GROUP = "medfed.plugins"
"""Entry points: each names a module that registers parts when imported, or a function that does when called."""


@dataclass(frozen=True)
class Plugin:
    """Code from outside the package: a file's or module's name, and ``sha256:`` with the hash of its content.
    ``source`` is the file's absolute path or the module's name; empty for what a notebook or a script defines."""

    name: str
    sha256: str
    source: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256})"


@dataclass
class _State:
    """The plugins of this process."""

    loaded: dict[str, Plugin] = field(default_factory=dict)
    files: dict[str, Plugin] = field(default_factory=dict)
    searched: bool = False
    allowed: frozenset[str] | None = None
    refused: list[Plugin] = field(default_factory=list)


_state = _State()


def load(reference: str | Path) -> Plugin:
    """Load a plugin: a ``.py`` file by its path, or a module by its name. One that is loaded already stays, but a file
    that changed since is executed anew. Raises PluginError if it is absent, fails, or is not allowed here."""
    if _is_file(reference):
        plugin, text = _of_file(Path(reference))
        return plugin if plugin in _state.loaded.values() else _load(plugin, lambda: _execute(plugin, text))
    plugin = _of_module(str(reference))
    return _state.loaded.get(plugin.source) or _load(plugin, lambda: import_module(plugin.source))


def examine(reference: str | Path) -> Plugin:
    """Return what a plugin is, without executing any of it. Raises PluginError if it is absent."""
    return _of_file(Path(reference))[0] if _is_file(reference) else _of_module(str(reference))


def load_expected(plugin: Plugin) -> None:
    """Load a plugin whose content is known. Raises PluginError if it is absent, or its content is another."""
    present = examine(plugin.source)
    if present.sha256 != plugin.sha256:
        what = f"the content was {plugin.sha256} and is now {present.sha256}"
        hint = "bring the content back that it had, or run the study again with what it is now"
        raise PluginError(what, where=plugin.source, hint=hint)
    load(plugin.source)


def load_installed() -> None:
    """Load the plugins of installed packages, once; those that are not allowed here are passed over. Raises PluginError
    if one of them fails."""
    if _state.searched:
        return
    _state.searched = True
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        plugin = _of_module(entry.module)
        if not _is_allowed(plugin):
            _state.refused.append(plugin)
        else:
            _load(plugin, lambda entry=entry: _enter(entry))  # type: ignore[misc]


def loaded() -> tuple[Plugin, ...]:
    """Return the plugins of this process, in the order in which they were loaded."""
    return tuple(_state.loaded.values())


def refused() -> tuple[Plugin, ...]:
    """Return the installed plugins that are not allowed here."""
    return tuple(_state.refused)


def allow_only(contents: Iterable[str]) -> None:
    """Load no plugin from now on but those with one of ``contents``: ``sha256:…``."""
    _state.allowed = frozenset(contents)


@dataclass(frozen=True)
class Loaded:
    """Plugins to load in another process: unpickling this loads them, so what is pickled after it may be theirs."""

    plugins: Sequence[Plugin]

    def __reduce__(self) -> tuple[Callable[[Sequence[Plugin]], Loaded], tuple[Sequence[Plugin]]]:
        return load_again, (self.plugins,)


def load_again(plugins: Sequence[Plugin]) -> Loaded:
    """Load in this process what another has loaded. Raises PluginError if one is absent here, or changed."""
    for plugin in plugins:
        load_expected(plugin)
    return Loaded(plugins)


def origin_of(module: str) -> Plugin | None:
    """Return the plugin that the code of ``module`` belongs to; None for the package, a notebook or a script."""
    if module in _state.files:
        return _state.files[module]
    known = sys.modules.get(module)
    if module in MAIN or getattr(known, "__spec__", None) is None or module.partition(".")[0] == "medfed":
        return None
    if module not in _state.loaded:
        _state.loaded[module] = _of_module(module)
    return _state.loaded[module]


def _load(plugin: Plugin, execute: Callable[[], object]) -> Plugin:
    if not _is_allowed(plugin):
        hint = f"the site's data officer may read it, and add {plugin.sha256!r} to plugins in policy.toml"
        raise PluginError("this plugin is not allowed here", where=str(plugin), hint=hint)
    before = _state.loaded.get(plugin.source)
    _state.loaded[plugin.source] = plugin
    try:
        execute()
    except BaseException as error:
        if before is None:
            del _state.loaded[plugin.source]
        if isinstance(error, MedfedError) or not isinstance(error, Exception):
            raise
        what = f"the plugin fails: {type(error).__name__}: {error}"
        raise PluginError(what, where=_line(error, plugin), hint="correct it") from error
    return plugin


def _is_allowed(plugin: Plugin) -> bool:
    return _state.allowed is None or plugin.sha256 in _state.allowed


def _execute(plugin: Plugin, text: bytes) -> None:
    """Execute a plugin's file as a module that other code finds by its name."""
    path = Path(plugin.source)
    place = hashlib.sha256(plugin.source.encode()).hexdigest()[:8]
    module = ModuleType(f"medfed_plugin_{path.stem.replace('-', '_')}_{place}", None)
    module.__file__ = plugin.source
    tables: tuple[dict[str, Any], ...] = (sys.modules, _state.files)
    before = [{name: value for name, value in table.items() if name == module.__name__} for table in tables]
    sys.modules[module.__name__], _state.files[module.__name__] = module, plugin
    try:
        exec(compile(text, plugin.source, "exec"), vars(module))  # noqa: S102 (a plugin is code that the user names)
    except BaseException:
        for table, kept in zip(tables, before, strict=True):
            del table[module.__name__]
            table.update(kept)
        raise


def _enter(entry: EntryPoint) -> None:
    named = entry.load()
    if callable(named):
        named()


def _is_file(reference: str | Path) -> bool:
    return isinstance(reference, Path) or reference.endswith(".py") or "/" in reference or "\\" in reference


def _of_file(path: Path) -> tuple[Plugin, bytes]:
    """Return the plugin in a file, and its text."""
    try:
        place = path.expanduser().resolve()
        text = place.read_bytes()
    except OSError as error:
        hint = "pass --plugin FILE.py, or a module's name"
        raise PluginError(f"cannot read the plugin: {error.strerror}", where=path, hint=hint) from error
    return Plugin(place.name, f"sha256:{hashlib.sha256(text).hexdigest()}", str(place)), text


def _of_module(name: str) -> Plugin:
    """Return the plugin that is an installed module, by all source files of its package; nothing is executed."""
    invalidate_caches()
    parts = name.split(".")
    try:
        # A namespace has no code of its own, so finding what is in it executes nothing.
        for depth in range(1, len(parts) + 1):
            spec = find_spec(".".join(parts[:depth]))
            if spec is None or spec.origin is not None:
                break
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        hint = "install it, or pass a file: FILE.py"
        raise PluginError("no such module is installed here", where=f"plugin {name!r}", hint=hint)
    origin, alone = Path(spec.origin), spec.submodule_search_locations is None
    files = [origin] if alone else sorted(origin.parent.rglob("*.py"))
    return Plugin(name, f"sha256:{_digest(files, origin.parent)}", name)


def _digest(files: Sequence[Path], root: Path) -> str:
    """Return the hash of one file's bytes, or of the names and bytes of several."""
    try:
        if len(files) == 1 and files[0].name != "__init__.py":
            return hashlib.sha256(files[0].read_bytes()).hexdigest()
        digest = hashlib.sha256()
        for path in files:
            text = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(text)}\0".encode() + text)
    except OSError as error:
        what, hint = f"cannot read its source: {error.strerror}", "install it as plain files"
        raise PluginError(what, where=error.filename, hint=hint) from error
    return digest.hexdigest()


def _line(error: BaseException, plugin: Plugin) -> str:
    """Return the last line of the plugin's own on the way to ``error``."""
    passed = walk_tb(error.__traceback__)
    lines = [line for frame, line in passed if frame.f_code.co_filename == plugin.source]
    if isinstance(error, SyntaxError) and error.filename == plugin.source and error.lineno:
        lines.append(error.lineno)
    return f"{plugin.source}, line {lines[-1]}" if lines else plugin.source
