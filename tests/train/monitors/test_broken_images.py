import pytest

from pcd_hub.errors import DataError
from tests.train.conftest import image_folder, run

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_broken_images_are_skipped_counted_and_named(tiny, tmp_path, caplog):
    images = image_folder(tmp_path / "images", 120, broken=1)
    folder = run(
        tiny, tmp_path / "run", "--run.no-store", f"--data.source={images}", "--run.max-steps=15"
    )
    assert caplog.text.count("skipped a broken image") == 1
    assert "0000.png" in caplog.text
    assert "skipped 1 broken images in total" in caplog.text
    assert (folder / "record.json").exists()


def test_more_than_one_percent_broken_is_an_error(tiny, tmp_path):
    images = image_folder(tmp_path / "images", 120, broken=3)
    with pytest.raises(DataError, match=r"of 120 images cannot be read, expected at most 1%"):
        run(
            tiny,
            tmp_path / "run",
            "--run.no-store",
            f"--data.source={images}",
            "--run.max-steps=15",
        )
