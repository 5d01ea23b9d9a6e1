"""Settings of the data: twins, splits, partitions, missing modalities."""

from __future__ import annotations

import operator
from typing import Literal

from pydantic import Field, model_validator

from medfed.study.parts import SettingsModel

SPLITS = ("private", "public", "development", "test")


class TwinSpec(SettingsModel):
    """How large and how hard a synthetic twin is."""

    num_patients: int = Field(default=400, gt=0)  # patients to write
    seed: int = Field(default=0, ge=0)  # the twin is a pure function of this spec
    difficulty: float = Field(default=0.5, ge=0, le=1)  # 0 easy … 1 hopeless; a small encoder's AUROC is 0.80 to 0.95
    image_size: int = Field(default=96, ge=32)  # pixels per side of written images


class MissingSettings(SettingsModel):
    """Which modalities are taken away."""

    # `client` takes one modality from all examples of a share of the clients; `example` takes one from a share of the
    # examples, wherever they are
    by: Literal["client", "example"] = "example"
    share: float = Field(default=0.0, ge=0, le=1)  # of clients or examples, 0 to 1
    modalities: tuple[str, ...] = ()  # those that may be taken, by default all of the dataset; one is always left


class SplitSettings(SettingsModel):
    """How patients are divided."""

    ratios: tuple[float, float, float, float] = (7, 1, 1, 1)  # shares of private, public, development and test
    official: bool = True  # keep a dataset's official split where it has one; False deals all patients anew
    # the server keeps at most so many public and test examples of a task, drawn at random, and leaves out the others:
    # a large LLM reads every one of them; null for all
    max_public: int | None = Field(default=None, gt=0, exclude_if=operator.not_)
    max_test: int | None = Field(default=None, gt=0, exclude_if=operator.not_)

    @model_validator(mode="after")
    def _positive(self) -> SplitSettings:
        if min(self.ratios) < 0 or self.ratios[0] == 0 or self.ratios[3] == 0:
            raise ValueError("ratios must not be negative, and private and test must be above 0")
        return self


class PartitionSettings(SettingsModel):
    """How private patients are spread over clients."""

    # `iid` deals evenly within each class. `dirichlet` draws each class's shares from Dirichlet(alpha) (Hsu et al.
    # 2019). `quantity` draws one share per client for all classes from Dirichlet(alpha). `pathological` gives every
    # client patients of `classes_per_client` classes only (McMahan et al. 2017). `natural` makes every site of a
    # dataset a client. `sites` makes every *folder* a client, with patients of its own, and the server has its own
    # folder (`medfed.data.sites`).
    scheme: Literal["iid", "dirichlet", "quantity", "pathological", "natural", "sites"] = "iid"
    num_clients: int = Field(default=5, ge=1)  # `natural` takes the number of sites, `sites` of folders, if any
    alpha: float = Field(default=0.5, gt=0)  # Dirichlet concentration; small means more skew
    classes_per_client: int = Field(default=1, ge=1)  # of `pathological`
    min_examples: int = Field(default=1, ge=1)  # a client with fewer is left out, and the partition's record names it
    # of `sites` on twins: site → the datasets it holds; a site not named holds all
    holdings: dict[str, tuple[str, ...]] = Field(default_factory=dict, exclude_if=operator.not_)

    @model_validator(mode="after")
    def _holdings_are_of_sites(self) -> PartitionSettings:
        if self.holdings and self.scheme != "sites":
            raise ValueError(f'holdings are of scheme = "sites", not of {self.scheme!r}; remove them')
        for site, datasets in self.holdings.items():
            if site not in self.twin_sites:
                made = f"num_clients = {self.num_clients} makes {', '.join(self.twin_sites)}"
                raise ValueError(f"holdings names no site {site!r}; {made}")
            if not datasets:
                raise ValueError(f"holdings leaves {site!r} without a dataset; name one, or lower num_clients")
        return self

    @property
    def twin_sites(self) -> tuple[str, ...]:
        """Names of the sites that scheme ``sites`` has on synthetic twins."""
        return tuple(f"site-{number}" for number in range(self.num_clients))
