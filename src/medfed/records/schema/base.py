"""A record, a file and a line of a JSON-lines file, and the values that they may hold."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

SCHEMA_VERSION = "2"
"""Version 1 is every run without a ``schema_version``; :mod:`medfed.records.legacy` reads it."""
Role = Literal["trained", "unseen", "knowledge"]
"""Of a task: a trained one, one the injection never saw, or an examination without patients."""
Json = Any
"""A value that JSON can hold, whose form depends on the kind of answer (see :class:`Prediction`)."""


def finite(value: Json) -> Json:
    """Return a value without NaN and infinities, which become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(part) for part in value]
    return {name: finite(part) for name, part in value.items()} if isinstance(value, dict) else value


Number = Annotated[float | None, BeforeValidator(finite)]
"""A finite number; None stands for null, NaN and infinities."""


class Record(BaseModel):
    """A frozen part of a run file; a field that it does not name is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Stored(Record):
    """A record with a file of its own; ``NAME`` is the file's path in the run folder."""

    NAME: ClassVar[str]

    def __init_subclass__(cls, path: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.NAME = path


class File(Stored):
    """A JSON file of a run folder."""

    schema_version: str = SCHEMA_VERSION


class Line(Stored):
    """A line of a JSON-lines file."""
