"""Where the data of a federation of folders lies: ``DIR/<site>/<dataset>`` for every site, ``DIR/server/<dataset>``.

Without a data root every site and the server get synthetic twins of their own: the server's are those of the study, a
site's have the seed that follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from medfed.datasets.base import Dataset, TwinSpec
from medfed.datasets.sources import checksum
from medfed.datasets.split import PartitionSettings
from medfed.errors import DataError

SERVER = "server"
"""The server's folder."""
Roots = dict[str, Path]
"""Dataset → its native root."""


def site_folders(data_root: Path) -> dict[str, Path]:
    """Return site → its folder, sorted by name.

    Raises:
        DataError: there is no ``server`` folder, or no other one.
    """
    if not data_root.is_dir():
        raise DataError("the data root is not a folder", where=data_root, hint="check --data-root")
    folders = sorted(path for path in data_root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if SERVER not in [folder.name for folder in folders]:
        raise DataError(
            f"no folder {SERVER!r} here; a federation of folders has DIR/{SERVER}/<dataset> and DIR/<site>/<dataset>",
            where=data_root,
            hint="put the server's public, development and test data there, or write twins: medfed data synth --study",
        )
    sites = {folder.name: folder for folder in folders if folder.name != SERVER}
    if not sites:
        raise DataError("no site's folder here", where=data_root, hint="give every site a folder beside the server's")
    return sites


def locate_held(site: str, datasets: Iterable[Dataset], folder: Path) -> Roots:
    """Return the roots of those ``datasets`` that the site's folder holds.

    Raises:
        DataError: it is absent or empty, or holds none of them.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        what = "the site's folder is empty" if folder.is_dir() else "the site has no folder"
        raise DataError(
            what, where=f"site {site!r}: {folder}", hint="put its datasets there, in native layout, or remove the site"
        )
    roots: Roots = {}
    wanted = list(datasets)
    for dataset in wanted:
        try:
            roots[dataset.name] = dataset.locate(folder)
        except DataError:
            continue
    if not roots:
        raise DataError(
            f"the site has none of the wanted datasets ({', '.join(dataset.name for dataset in wanted)})",
            where=f"site {site!r}: {folder}",
            hint="lay one out as `medfed data list` says, or remove the site's folder",
        )
    return roots


def twin_specs(
    datasets: Iterable[str], trained: Iterable[str], specs: Mapping[str, TwinSpec], settings: PartitionSettings
) -> dict[str, dict[str, TwinSpec]]:
    """Return party (``server``, ``site-0``, …) → dataset → the twin it gets.

    Args:
        datasets: all datasets of the study; the server has each.
        trained: those of trained tasks; a site has those of ``settings.holdings``, or all of them.
        specs: the study's spec by dataset: the server's.
        settings: the partition.
    """
    wanted = sorted(trained)
    parties = {SERVER: {name: specs[name] for name in datasets}}
    for number, site in enumerate(settings.twin_sites):
        held = settings.holdings.get(site, tuple(wanted))
        parties[site] = {
            name: specs[name].model_copy(update={"seed": specs[name].seed + 1 + number})
            for name in wanted
            if name in held
        }
    return parties


def checksums(datasets: Mapping[str, Dataset], parties: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Return dataset → a hash of what lies at all ``parties`` (party → dataset → root) together."""
    sums: dict[str, str] = {}
    for name, dataset in datasets.items():
        held = {party: roots[name] for party, roots in sorted(parties.items()) if name in roots}
        lines = [f"{party}:{checksum(dataset.index(root), root)}" for party, root in held.items()]
        sums[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return sums
