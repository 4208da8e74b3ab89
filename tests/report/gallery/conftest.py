import dataclasses

import pytest

from pcd_hub.report.gallery.content import GalleryEntry

PLAIN = GalleryEntry(
    name="b.pcd",
    origin="local",
    license="mit",
    architecture="convnext_atto",
    parameters=3.0,
    megabytes=12.0,
    gmacs=0.5,
    image_size="96",
    teacher="timm:ViT",
    images="200 of photos",
    scores={"VOC (probe)": 40.0},
)


@pytest.fixture
def entries():
    """Three weights of which the last is only published."""
    large = dataclasses.replace(
        PLAIN, name="a.pcd", parameters=20.0, scores={"VOC (probe)": 9.5}, license="apache-2.0"
    )
    published = GalleryEntry(name="c.pcd", origin="published", license="mit", parameters=5.0)
    return [large, PLAIN, published]
