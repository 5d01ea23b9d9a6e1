"""Divide patients into private, public, development and test (7:1:1:1 in FedKIM §3.2), and private ones over clients.

Everything here is a pure function of (rosters, settings, seed). Patients are dealt over all datasets of a study
together: a person in two datasets has one split and one client. So no model is tested on a patient whom it saw in
training under another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from medfed.core.errors import DataError, StudyError
from medfed.core.rng import numpy_rng
from medfed.study.data import SPLITS, PartitionSettings, SplitSettings

MANY = 6
"""Targets beyond which their combinations are too many to stratify by."""
Rosters = Mapping[str, pl.DataFrame]
"""Dataset → its :func:`roster`."""
Strata = Mapping[str, str]
"""Patient → stratum; patients of a stratum are dealt evenly."""
Key = tuple[int | str, ...]
"""The seed of a generator."""


def roster(index: pl.DataFrame, targets: Sequence[str], strata: Sequence[str] | None = None) -> pl.DataFrame:
    """Return columns patient, site, split and label of the examples with a known target.

    The label is ``strata`` (by default the targets) as text. Of more than :data:`MANY` it is the first that is
    positive: all their combinations would be strata of one patient each.
    """
    known = index.filter(pl.any_horizontal(pl.col(target).is_not_null() for target in targets))
    columns = targets if strata is None else strata
    if len(columns) > MANY:
        positive = [pl.when(pl.col(column) == 1).then(pl.lit(column)) for column in columns]
        label = pl.coalesce(*positive, pl.lit("none")).alias("label")
    else:
        label = pl.concat_str([pl.col(column).cast(pl.Utf8).fill_null("?") for column in columns]).alias("label")
    return known.select("patient", "site", "split", label)


def assign_splits(
    rosters: Rosters, settings: SplitSettings, seed: int, parts: Sequence[str] = SPLITS
) -> dict[str, str]:
    """Return patient → split over all ``rosters``.

    Datasets are visited in order of name; patients placed before keep their place. Official splits are placed first.
    A site or the server of a federation of folders has some of the ``parts`` only. Patients whose official split is
    none of them go to its first part. Raises DataError if two datasets place a patient in two official splits.
    """
    placed = _official_splits(rosters) if settings.official else {}
    placed = {patient: split if split in parts else parts[0] for patient, split in placed.items()}
    shares = np.array(settings.ratios) / sum(settings.ratios)
    numbers = [SPLITS.index(part) for part in parts]
    fitting = [number for number in numbers if number < 2]
    for name in sorted(rosters):
        rows = rosters[name]
        train = set(rows.filter(pl.col("split") == "train")["patient"]) if settings.official else set()
        for group, options in ((train, fitting), (set(rows["patient"]) - train, numbers)):
            strata = _strata(rows.filter(pl.col("patient").is_in(sorted(group))))
            weights = shares[options] / (shares[options].sum() or 1.0)
            dealt = _deal(strata, placed, [SPLITS[i] for i in options], weights, (seed, "split", name, len(options)))
            placed.update(dealt)
    return placed


def assign_clients(
    rosters: Rosters, splits: Mapping[str, str], settings: PartitionSettings, seed: int, part: str = "private"
) -> dict[str, str]:
    """Return patient of ``part`` → client id (``client-0`` …, or the site's name), one client per patient.

    Test patients are dealt by the same shares as private ones, so a client is tested on what it is like.
    """
    placed: dict[str, str] = {}
    for name in sorted(rosters):
        private = rosters[name].filter([splits[patient] == part for patient in rosters[name]["patient"]])
        if settings.scheme == "natural":
            placed.update(_by_site(private, name, placed))
        else:
            placed.update(_over_clients(_strata(private), placed, settings, (seed, "client", name)))
    return placed


def _over_clients(strata: Strata, placed: Mapping[str, str], settings: PartitionSettings, key: Key) -> dict[str, str]:
    clients = [f"client-{number}" for number in range(settings.num_clients)]
    if settings.scheme in ("iid", "quantity"):
        return _deal(strata, placed, clients, _shares(settings, key, "", [""]), key)
    dealt, groups = dict[str, str](), _grouped(strata)
    for stratum, group in groups.items():
        shares = _shares(settings, key, stratum, list(groups))
        dealt.update(_deal(dict.fromkeys(group, stratum), placed, clients, shares, (*key, stratum)))
    return dealt


def _shares(settings: PartitionSettings, key: Key, stratum: str, strata: list[str]) -> Float[np.ndarray, " client"]:
    """Return every client's share of one of the ``strata``."""
    count, each = settings.num_clients, settings.classes_per_client
    if settings.scheme == "iid":
        return np.full(count, 1 / count)
    if settings.scheme != "pathological":
        return np.asarray(numpy_rng(*key, "shares", stratum).dirichlet(np.full(count, settings.alpha)))
    # Classes are dealt to clients, ``each`` of them, until every client is full and no class is left.
    order, holds = numpy_rng(*key, "classes").permutation(len(strata)), np.zeros(count)
    for slot in range(max(count * each, len(strata))):
        if strata[order[slot % len(strata)]] == stratum:
            holds[slot // each % count] = 1
    return np.asarray(holds / holds.sum())


def partition_hash(clients: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Return a hash of who holds which examples, equal for equal partitions."""
    return hashlib.sha256(json.dumps(clients, sort_keys=True).encode()).hexdigest()[:16]


def _official_splits(rosters: Rosters) -> dict[str, str]:
    placed: dict[str, str] = {}
    for name in sorted(rosters):
        official = rosters[name].filter(pl.col("split").is_in(SPLITS))
        for patient, split in official.select("patient", "split").unique(maintain_order=True).iter_rows():
            if (other := placed.setdefault(patient, split)) != split:
                what = f"patient {patient!r} is in the official split {split!r} here and in {other!r} elsewhere"
                hint = "set split.official = false in the study to deal all patients anew"
                raise DataError(what, where=name, hint=hint)
    return placed


def _strata(rows: pl.DataFrame) -> dict[str, str]:
    """Return patient → label; of a patient with several examples the highest, so that a finding counts."""
    return dict(sorted(rows.group_by("patient").agg(pl.col("label").max()).iter_rows()))


def _grouped(strata: Strata) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for patient in sorted(strata):
        groups.setdefault(strata[patient], []).append(patient)
    return dict(sorted(groups.items()))


def _deal(
    strata: Strata, placed: Mapping[str, str], options: Sequence[str], weights: Float[np.ndarray, " option"], key: Key
) -> dict[str, str]:
    """Deal patients not yet placed to ``options`` so that counts follow ``weights``; those placed before count too.

    Each patient goes to the option furthest below its share, of the stratum and of all together.
    """
    rng, totals = numpy_rng(*key), np.zeros(len(options))
    dealt: dict[str, str] = {}
    for group in _grouped(strata).values():
        there = [placed.get(patient) for patient in group]
        counts = np.array([there.count(option) for option in options], float)
        totals += counts
        free = [patient for patient in group if patient not in placed]
        for position in rng.permutation(len(free)):
            deficit = weights * (counts.sum() + 1) - counts + weights * (totals.sum() + 1) - totals
            choice = int(np.argmax(np.where(weights > 0, deficit, -np.inf)))
            counts[choice] += 1
            totals[choice] += 1
            dealt[free[position]] = options[choice]
    return dealt


def _by_site(private: pl.DataFrame, name: str, placed: Mapping[str, str]) -> dict[str, str]:
    if private["site"].null_count():
        what = f"the natural partition needs a site for every example, and {name} has examples without"
        raise StudyError(what, where="partition.scheme", hint='use scheme = "iid" or "dirichlet"')
    rows = private.select("patient", "site").unique("patient", keep="first", maintain_order=True).iter_rows()
    return {patient: str(site) for patient, site in rows if patient not in placed}
