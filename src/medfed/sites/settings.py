"""Settings files of hospitals and federations: TOML in, frozen pydantic models out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from medfed.core.errors import SiteError
from medfed.study.study import explained
from medfed.twins.writing import SERVER

Settings = TypeVar("Settings", bound=BaseModel)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of studies and sites: they become names of files."""


def read_settings(path: Path, model: type[Settings], missing: str) -> Settings:
    """Read ``path`` as ``model``; ``missing`` is the next step where the file is absent. Raises SiteError if it is
    absent, not TOML, or has an unknown key or a wrong value; the message names file and field."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SiteError("no such file", where=path, hint=missing) from error
    except OSError as error:
        raise SiteError(f"cannot read it: {error.strerror}", where=path, hint="check its owner and rights") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteError(f"not valid TOML: {error}", where=path, hint="correct that line") from error
    return checked(model, tree, path)


def checked(model: type[Settings], tree: Mapping[str, object], where: str | Path = "command line") -> Settings:
    """Return ``tree`` as ``model``. Raises SiteError for an unknown key or a wrong value, naming the field."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problem = explained(error, where, model)
        hint = (problem.hint or "").replace("correct it in the file, or with --set", "correct it")
        raise SiteError(problem.what, where=where, hint=hint) from error


def toml(values: Mapping[str, str | int | float | list[str]]) -> str:
    """Return a flat table as TOML, a line each; JSON's text, numbers, truth values and lists of text are TOML's too."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def check_name(name: str) -> None:
    """Raise SiteError for what cannot be a site's name, as it becomes a file's; nor may it be the server's folder."""
    if not re.fullmatch(NAME_PATTERN, name) or name == SERVER:
        hint = f"letters, digits, '.', '_' and '-', the first a letter or digit; not {SERVER!r}"
        raise SiteError(f"not a site's name: {name!r}", where="site", hint=hint)


def new_folder(path: Path) -> None:
    """Make the folder ``path``, which its owner alone may open. Raises SiteError if something is there already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SiteError("it exists and is not an empty folder", where=path, hint="choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
