"""The LLMs that are known by name: their content's hashes, licence, size, and where they are found (``known.toml``)."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Dtype = Literal["float32", "bfloat16"]
BYTES_OF: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Entry):
    """A file on the model hub.

    Attributes:
        repository: owner and name.
        revision: commit or tag.
        file: its name in the repository.
    """

    repository: str
    revision: str
    file: str


class Packages(_Entry):
    """Wheels of a package registry that hold the file, or its pieces in order.

    Attributes:
        name: of a package; ``{number}`` is the piece's, from one.
        version: of each.
        member: the piece's path in its wheel.
        pieces: SHA-256 of each.
    """

    name: str
    version: str
    member: str
    pieces: tuple[Sha256, ...]

    def package(self, number: int) -> str:
        """Return the name of the package with piece ``number``, from one."""
        return self.name.format(number=number)

    def path(self, number: int) -> str:
        """Return where piece ``number`` lies in its wheel."""
        return self.member.format(number=number)

    def label(self) -> str:
        """Return the packages' names in one phrase."""
        count = len(self.pieces)
        names = self.package(1) if count == 1 else f"{self.package(1)} … {self.package(count)}"
        return f"{names} {self.version}"


class KnownLlm(_Entry):
    """An LLM that is known by name, as a GGUF file.

    Attributes:
        title: what it is, and how it is quantised.
        licence: its SPDX name.
        num_parameters: as the file stores them.
        dtype: of the weights after conversion.
        num_bytes: of the GGUF file.
        sha256: of the GGUF file.
        hub: where the model hub has it.
        packages: where a package registry has it.
    """

    title: str
    licence: str
    num_parameters: int
    dtype: Dtype
    num_bytes: int
    sha256: Sha256
    hub: Hub
    packages: Packages

    @property
    def converted_bytes(self) -> int:
        """About how many bytes the converted folder takes."""
        return self.num_parameters * BYTES_OF[self.dtype]

    @property
    def needed_bytes(self) -> int:
        """Free bytes needed on the way: pieces, the joined file and the converted folder, and a twentieth more."""
        return math.ceil(1.05 * (2 * self.num_bytes + self.converted_bytes))


def _read() -> dict[str, KnownLlm]:
    text = files(__package__).joinpath("known.toml").read_text(encoding="utf-8")
    return {name: KnownLlm.model_validate(entry) for name, entry in tomllib.loads(text).items()}


KNOWN: Mapping[str, KnownLlm] = _read()
"""Name → what is known of it."""
