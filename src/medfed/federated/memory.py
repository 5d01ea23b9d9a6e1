"""The tensors that clients keep between rounds: SCAFFOLD's control variates, personal layers, optimizer moments.

A client that trains in round t starts from what it kept in its newest round before t, and files the result under t. The
last two are kept, so a round can be repeated after a server came back from its last checkpoint, with the same result.
On disk, memory does not grow with the number of clients, and a hospital's memory outlives its process.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medfed.core.errors import DiskError
from medfed.core.files import written_whole
from medfed.core.types import Params
from medfed.federated.state import copied, fingerprint, num_bytes

KEPT = 2
"""Rounds kept per client: the newest and the one a repetition of it starts from."""


class RamMemory:
    """Client states by client and round, in this process."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, dict[str, Tensor]]] = {}

    def before(self, client: str, round: int) -> dict[str, Tensor] | None:
        """Return what ``client`` kept in its newest round before ``round``, or None."""
        rounds = self._kept.get(client, {})
        earlier = [number for number in rounds if number < round]
        return rounds[max(earlier)] if earlier else None

    def keep(self, client: str, round: int, state: Params) -> None:
        """File what ``client`` kept in ``round``; all but the last :data:`KEPT` rounds go."""
        rounds = self._kept.setdefault(client, {})
        rounds[round] = dict(state)
        for old in sorted(rounds)[:-KEPT]:
            del rounds[old]

    def forget_after(self, round: int) -> None:
        """Drop what was filed after ``round``: it is about to be computed again."""
        for client, rounds in self._kept.items():
            self._kept[client] = {number: state for number, state in rounds.items() if number <= round}


class DiskMemory:
    """Client states as files ``<client>/<round>.safetensors``, each with a hash of its content.

    The folder is made when the first state is filed. A client that keeps nothing has no file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, client: str, round: int) -> dict[str, Tensor] | None:
        """See :class:`RamMemory`. Raises DiskError if the file does not hold what was filed."""
        earlier = [path for path in self._files(client) if int(path.stem) < round]
        return _read(earlier[-1]) if earlier else None

    def keep(self, client: str, round: int, state: Params) -> None:
        """See :class:`RamMemory`. Raises DiskError if the disk is full, say; what was kept before is intact."""
        if not state:
            return
        path, tensors = self._place(client) / f"{round:06d}.safetensors", copied(state)
        with written_whole(path, num_bytes(tensors)) as partial:
            save_file(tensors, partial, {"sha256": fingerprint(tensors, {})})
        for old in self._files(client)[:-KEPT]:
            old.unlink()

    def forget_after(self, round: int) -> None:
        """See :class:`RamMemory`."""
        for path in self._folder.glob("*/[0-9]*.safetensors"):
            if int(path.stem) > round:
                path.unlink()

    def _place(self, client: str) -> Path:
        return self._folder / quote(client, safe="").replace(".", "%2E")

    def _files(self, client: str) -> list[Path]:
        return sorted(self._place(client).glob("[0-9]*.safetensors"))


ClientMemory = RamMemory | DiskMemory


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            tensors = copied({name: file.get_tensor(name) for name in sorted(file.keys())})
            filed = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError) as error:
        raise DiskError(f"cannot read it: {error}", where=path, hint=_HINT) from error
    if filed != fingerprint(tensors, {}):
        raise DiskError("its content is not what was written", where=path, hint=_HINT)
    return tensors


_HINT = "the disk may be failing; remove this client's folder to let it start from the initial state"
