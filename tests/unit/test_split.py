"""Splits and partitions: pure, patient-wise over all datasets, close to the shares asked for."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest

from medfed.core.errors import DataError, MedfedError
from medfed.data.split import assign_clients, assign_splits, roster
from medfed.study.data import PartitionSettings, SplitSettings


def people(first: int, count: int, every: int, split: str | None = None, site: str | None = None) -> pl.DataFrame:
    numbers = range(first, first + count)
    index = pl.DataFrame(
        {
            "patient": [f"p{number}" for number in numbers],
            "site": pl.Series([site] * count, dtype=pl.Utf8),
            "split": pl.Series([split] * count, dtype=pl.Utf8),
            "finding": pl.Series([int(number % every == 0) for number in numbers], dtype=pl.Int8),
        }
    )
    return roster(index, ["finding"])


def test_ratios_hold_overall_and_within_the_rare_class() -> None:
    rows = people(0, 1000, every=10)
    splits = assign_splits({"a": rows}, SplitSettings(), seed=1)
    counts = Counter(splits.values())
    # 7:1:1:1 of 1000 patients; dealing by largest deficit keeps every count within one of its share.
    assert all(abs(counts[name] - 100 * share) <= 1 for name, share in zip(counts_order(), (7, 1, 1, 1), strict=True))
    sick = Counter(splits[f"p{number}"] for number in range(0, 1000, 10))
    assert all(abs(sick[name] - 10 * share) <= 2 for name, share in zip(counts_order(), (7, 1, 1, 1), strict=True))


def counts_order() -> tuple[str, ...]:
    return ("private", "public", "development", "test")


def test_a_patient_in_two_datasets_has_one_split_and_one_client() -> None:
    rosters = {"a": people(0, 300, every=3), "b": people(200, 300, every=2)}
    splits = assign_splits(rosters, SplitSettings(), seed=0)
    clients = assign_clients(rosters, splits, PartitionSettings(), seed=0)
    assert set(splits) == {f"p{number}" for number in range(500)}
    assert set(clients) == {patient for patient, split in splits.items() if split == "private"}
    # both datasets still follow the shares although 100 patients are common
    for rows in rosters.values():
        share = sum(splits[patient] == "private" for patient in rows["patient"]) / len(rows)
        assert share == pytest.approx(0.7, abs=0.03)


def test_row_order_does_not_matter_and_the_seed_does() -> None:
    rows = people(0, 200, every=4)
    one = assign_splits({"a": rows}, SplitSettings(), seed=0)
    assert one == assign_splits({"a": rows.reverse()}, SplitSettings(), seed=0)
    assert one != assign_splits({"a": rows}, SplitSettings(), seed=1)


def test_official_splits_are_kept_and_train_is_divided_between_private_and_public() -> None:
    rosters = {
        "a": pl.concat([people(0, 80, 2, "train"), people(100, 10, 2, "development"), people(200, 10, 2, "test")])
    }
    splits = assign_splits(rosters, SplitSettings(), seed=0)
    assert Counter(splits.values()) == {"private": 70, "public": 10, "development": 10, "test": 10}
    assert all(splits[f"p{number}"] == "test" for number in range(200, 210))
    anew = assign_splits(rosters, SplitSettings(official=False), seed=0)
    assert {anew[f"p{number}"] for number in range(200, 210)} != {"test"}


def test_two_official_splits_for_one_patient_are_refused_by_name() -> None:
    rosters = {"a": people(5, 1, 2, "test"), "b": people(5, 1, 2, "private")}
    with pytest.raises(DataError, match="p5"):
        assign_splits(rosters, SplitSettings(), seed=0)


def test_dirichlet_is_more_skewed_with_smaller_alpha_and_ends() -> None:
    rosters = {"a": people(0, 2000, every=2)}
    splits = assign_splits(rosters, SplitSettings(), seed=0)

    def largest_share(alpha: float) -> float:
        settings = PartitionSettings(scheme="dirichlet", alpha=alpha)
        counts = Counter(assign_clients(rosters, splits, settings, seed=0).values())
        return max(counts.values()) / sum(counts.values())

    assert largest_share(0.05) > largest_share(100.0)
    assert largest_share(100.0) == pytest.approx(0.2, abs=0.05)


def test_natural_makes_sites_clients_and_needs_them() -> None:
    rosters = {"a": pl.concat([people(0, 50, 2, site="north"), people(50, 50, 2, site="south")])}
    splits = assign_splits(rosters, SplitSettings(), seed=0)
    clients = assign_clients(rosters, splits, PartitionSettings(scheme="natural"), seed=0)
    assert all(clients[patient] == ("north" if int(patient[1:]) < 50 else "south") for patient in clients)
    homeless = {"a": people(0, 10, 2)}
    with pytest.raises(MedfedError, match="natural partition needs a site"):
        assign_clients(
            homeless, assign_splits(homeless, SplitSettings(), 0), PartitionSettings(scheme="natural"), seed=0
        )


def test_pathological_clients_hold_few_classes_and_no_patient_is_lost() -> None:
    rows = people(0, 400, every=1).with_columns(label=pl.Series([str(number % 4) for number in range(400)]))
    rosters = {"a": rows}
    splits = assign_splits(rosters, SplitSettings(), seed=0)
    for num_clients, per_client in ((4, 1), (2, 1), (6, 2), (3, 4)):
        settings = PartitionSettings(scheme="pathological", num_clients=num_clients, classes_per_client=per_client)
        clients = assign_clients(rosters, splits, settings, seed=0)
        assert clients.keys() == {patient for patient, place in splits.items() if place == "private"}
        labels = dict(rosters["a"].select("patient", "label").iter_rows())
        held: dict[str, set[str]] = {}
        for patient, client in clients.items():
            held.setdefault(client, set()).add(labels[patient])
        most = max(per_client, -(-4 // num_clients))
        assert all(len(classes) <= most for classes in held.values())
        assert len(held) == num_clients


def test_quantity_skew_changes_sizes_and_keeps_the_classes_even() -> None:
    rosters = {"a": people(0, 2000, every=2)}
    splits = assign_splits(rosters, SplitSettings(), seed=0)
    clients = assign_clients(rosters, splits, PartitionSettings(scheme="quantity", alpha=0.5), seed=0)
    sizes = Counter(clients.values())
    assert max(sizes.values()) > 2 * min(sizes.values())
    labels = dict(rosters["a"].select("patient", "label").iter_rows())
    for client, size in sizes.items():
        if size > 50:
            positive = sum(labels[patient] == "1" for patient, own in clients.items() if own == client)
            assert positive / size == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "quantity", "pathological"])
def test_test_patients_are_dealt_by_the_shares_of_private_ones(scheme: str) -> None:
    rosters = {"a": people(0, 4000, every=2)}
    splits = assign_splits(rosters, SplitSettings(ratios=(5, 0, 0, 5)), seed=0)
    settings = PartitionSettings.model_validate({"scheme": scheme, "num_clients": 4, "alpha": 0.4})
    labels = dict(rosters["a"].select("patient", "label").iter_rows())
    shares = []
    for part in ("private", "test"):
        clients = assign_clients(rosters, splits, settings, 0, part)
        assert clients.keys() == {patient for patient, place in splits.items() if place == part}
        counts = Counter((client, labels[patient]) for patient, client in clients.items())
        shares.append({key: count / len(clients) for key, count in counts.items()})
    for key in shares[0] | shares[1]:
        assert shares[0].get(key, 0) == pytest.approx(shares[1].get(key, 0), abs=0.01)
