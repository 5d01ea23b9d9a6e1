"""Small twins of the image and question data sets, decoded, divided among clients, and with a model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

from medfed.core.catalog import DATASETS, MODALITIES, TASKS
from medfed.data.cohort import Cohort, build_cohort
from medfed.data.decode import decode
from medfed.data.layout import Division
from medfed.datasets.base import Dataset, write_twin
from medfed.datasets.decoded import Decoded
from medfed.modalities.base import Modality
from medfed.modalities.image import ImageModality
from medfed.models.blip import Blip
from medfed.study.data import PartitionSettings, SplitSettings, TwinSpec
from medfed.study.encoders import TextEncoderSpec, ViTMini
from medfed.study.models import BlipSpec
from medfed.study.parts import EncoderSpec
from medfed.tasks.base import TrainableTask, trainable

IMAGE_DATASETS: tuple[Dataset, ...] = tuple(
    DATASETS[name]
    for name in (
        "covid-radiography",
        "rsna-pneumonia",
        "chexpert",
        "chestxray14",
        "pneumoniamnist",
        "vqa-rad",
        "slake",
        "slake-zh",
    )
)
PNEUMONIA_MNIST = DATASETS["pneumoniamnist"]


def twin(dataset: Dataset, root: Path, num_patients: int = 12, **settings: float) -> Path:
    """Write a twin of ``dataset`` with 32-pixel images and return its root."""
    write_twin(dataset, root, TwinSpec(num_patients=num_patients, **{"image_size": 32, **settings}))
    return root


SMALL: dict[str, Modality] = {**MODALITIES, "image": ImageModality(size=32)}
TEXT = TextEncoderSpec(dim=16, num_heads=2)
ENCODERS: dict[str, EncoderSpec] = {
    "image": ViTMini(size=32, dim=16, num_layers=1, num_heads=2),
    "question": TEXT,
    "ehr": TEXT,
}
SPEC = BlipSpec(dim=16, depth=1, num_heads=2)


def task(name: str) -> TrainableTask:
    return trainable(TASKS[name])


@lru_cache(maxsize=4)
def decoded(name: str, num_patients: int = 40) -> Decoded:
    dataset = DATASETS[TASKS[name].dataset]
    root = Path(mkdtemp(prefix="vqa-twin-"))
    write_twin(dataset, root, TwinSpec(num_patients=num_patients, image_size=32))
    return decode(dataset, root, SMALL)


def cohort(name: str, num_patients: int = 40, num_clients: int = 3) -> Cohort:
    data = {TASKS[name].dataset: decoded(name, num_patients)}
    partition = PartitionSettings(num_clients=num_clients)
    return build_cohort(data, Division([TASKS[name]], [], SMALL, SplitSettings(), partition, seed=0))


def model(*names: str) -> Blip:
    tasks = tuple(task(name) for name in names)
    return SPEC.build(ENCODERS, SMALL, tasks)
