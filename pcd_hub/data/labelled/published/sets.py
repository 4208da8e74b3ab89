"""The published data sets that ``pcd-hub probe`` knows by name.

Addresses and md5 sums are those of torchvision 0.29 (``torchvision/datasets/*.py``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcd_hub.data.labelled.published.layouts import write_dtd, write_eurosat, write_oxford_pets
from pcd_hub.files.markdown import table


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file to download."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A data set, and the splits that an evaluation uses."""

    name: str
    task: Literal["segmentation", "classification"]
    content: str
    train_images: int
    test_images: int
    splits: str
    """Where the two splits come from."""
    image_size: int
    """Height and width in pixels at which it is evaluated by default."""
    megabytes: int
    """Size of the download."""
    licence: str
    licence_source: str
    """Where the licence is stated."""
    archives: tuple[Archive, ...]
    write: Callable[[Sequence[Path], Path], None]
    """Write the downloaded archives into an empty folder."""


OXFORD_PETS = PublishedSet(
    name="oxford_pets",
    task="segmentation",
    content="Oxford-IIIT Pet: cats and dogs, pet or background (the border is ignored)",
    train_images=740,
    test_images=3669,
    splits="test as published; train: the first 20 of each of 37 breeds in trainval.txt",
    image_size=192,
    megabytes=811,
    licence="CC BY-SA 4.0",
    licence_source="huggingface.co/datasets/timm/oxford-iiit-pet",
    archives=(
        Archive(
            url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
        ),
        Archive(
            url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
            md5="95a8c909bbe2e81eed6a22bccdf3f68f",
        ),
    ),
    write=write_oxford_pets,
)

EUROSAT = PublishedSet(
    name="eurosat",
    task="classification",
    content="EuroSAT (RGB): land use in satellite images, 10 classes",
    train_images=2000,
    test_images=2000,
    splits="200 and 200 of each class, in the order of the SHA-256 of the file names",
    image_size=128,
    megabytes=94,
    licence="MIT",
    licence_source="github.com/phelber/EuroSAT, huggingface.co/datasets/torchgeo/eurosat",
    archives=(
        Archive(
            url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            md5="c8fa014336c82ac7804f0398fcb19387",
        ),
    ),
    write=write_eurosat,
)

DTD = PublishedSet(
    name="dtd",
    task="classification",
    content="Describable Textures Dataset: textures, 47 classes",
    train_images=1880,
    test_images=1880,
    splits="train1.txt and test1.txt as published",
    image_size=192,
    megabytes=625,
    licence='CC BY 4.0 (its first author); "for research purposes" (its home page)',
    licence_source="huggingface.co/datasets/mcimpoi/dtd_split_1, robots.ox.ac.uk/~vgg/data/dtd",
    archives=(
        Archive(
            url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            md5="fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
    ),
    write=write_dtd,
)

SETS: dict[str, PublishedSet] = {one.name: one for one in (OXFORD_PETS, EUROSAT, DTD)}


def sets_table() -> str:
    """Return all sets as Markdown."""
    heads = ("name", "content", "task", "train", "test", "size", "download", "licence")
    rows: list[tuple[object, ...]] = [
        (
            one.name,
            one.content,
            one.task,
            one.train_images,
            one.test_images,
            f"{one.image_size} px",
            f"{one.megabytes} MB",
            one.licence,
        )
        for one in SETS.values()
    ]
    return table(heads, rows)
