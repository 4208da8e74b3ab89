"""Several sources at once, and patterns."""

import pickle

import pytest
from PIL import Image

from pcd_hub.data.sources.combined import CombinedImages
from pcd_hub.data.sources.globs import expand_braces
from pcd_hub.data.sources.open import ImageSource, open_source, open_sources
from pcd_hub.errors import DataError
from tests.data.sources.archives.test_tars import make_tar, samples
from tests.data.sources.archives.test_zips import make_zip, png, shade


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(("a/x/1.png", "a/2.png", "b/3.png", "b/4.png", "c d/5.png"), 1):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
    return tmp_path


def shades(source) -> list[int]:
    return [shade(source[index]) for index in range(len(source))]


def test_several_sources_have_one_index_in_the_given_order(folders):
    packed = make_zip(folders / "x.zip", [("9.png", png(9)), ("8.png", png(8))])
    tar = make_tar(folders / "s.tar", samples(20, 22))
    uris = (str(folders / "b"), packed, tar, str(folders / "a"))
    source = open_sources(uris)
    assert isinstance(source, ImageSource)
    assert shades(source) == [3, 4, 9, 8, 20, 21, 2, 1]
    assert [source.name(index) for index in (0, 2, 5, 7)] == [
        "3.png",
        "x.zip/9.png",
        "s.tar/0021.png",
        "x/1.png",
    ]
    assert shade(source[-1]) == 1
    with pytest.raises(IndexError):
        source[8]
    assert shades(pickle.loads(pickle.dumps(source))) == shades(source)
    parts = [open_source(uri).fingerprint() for uri in uris]
    assert source.fingerprint() == f"8 images of 4 sources: {'; '.join(parts)}"


def test_a_single_source_keeps_its_fingerprint(folders):
    one = open_sources([str(folders / "a")])
    assert one.fingerprint() == open_source(str(folders / "a")).fingerprint()
    assert one.fingerprint().startswith("2 files, paths sha256 ")


def test_files_that_are_reached_twice_are_counted_once(folders, caplog):
    (folders / "link").symlink_to(folders / "a")
    uris = (str(folders / "a/x"), str(folders / "link"), str(folders / "b"), str(folders / "a"))
    assert shades(open_sources(uris)) == [1, 2, 3, 4]
    assert "1 of 2 images of" in caplog.text
    assert "2 of 2 images of" in caplog.text
    caplog.clear()
    (folders / "list.txt").write_text("b/4.png\nb/4.png\nc d/5.png\n")
    assert shades(open_sources([str(folders / "b"), str(folders / "list.txt")])) == [3, 4, 5]
    assert len(open_source(str(folders / "list.txt"))) == 3, "a list alone is taken as it is"
    packed = make_zip(folders / "x.zip", [("9.png", png(9))])
    found = open_sources([packed, f"{folders}/b/../x.zip", str(folders / "b"), packed])
    assert shades(found) == [9, 3, 4]
    assert "x.zip is named twice; it is counted once" in caplog.text
    assert not isinstance(open_sources([packed, packed]), CombinedImages)


def test_no_source_and_a_stream_among_others_are_rejected(folders):
    with pytest.raises(DataError, match="no images: expected a folder or another source"):
        open_sources([])
    stream = make_tar(folders / "s.tar.gz", samples(0, 2), "w:gz")
    with pytest.raises(DataError, match="2 sources, of which one is a stream .stream of 1 tar"):
        open_sources([str(folders / "a"), stream])


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.png", [2, 1, 3, 4, 5]),
        ("a/**/*.png", [2, 1]),
        ("*/[3-5].png", [3, 4, 5]),
        ("b/?.*", [3, 4]),
        ("b/**", [3, 4]),
        ("**", [2, 1, 3, 4, 5]),
        ("[ab]", [2, 1, 3, 4]),
        ("c d/*", [5]),
    ],
)
def test_images_that_match_a_pattern(folders, monkeypatch, pattern, expected):
    (folders / "b" / "notes.md").write_text("x")
    (folders / "a" / ".hidden.png").write_bytes(png(99))
    (folders / "a" / "x" / "circle").symlink_to(folders / "a")
    assert shades(open_source(f"{folders}/{pattern}")) == expected
    monkeypatch.chdir(folders)
    assert shades(open_source(pattern)) == expected


def test_folders_that_match_beside_images_are_named(folders, caplog):
    assert shades(open_source(f"{folders}/b/*")) == [3, 4]
    assert "also matches" not in caplog.text
    assert shades(open_source(f"{folders}/a/*")) == [2]
    assert f"/a/* also matches 1 folder(s), which are not read ({folders}/a/x)" in caplog.text


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(folders):
    (folders / "b").rename(folders / "[2024] {1..2}*")
    assert shades(open_source(str(folders / "[2024] {1..2}*"))) == [3, 4]


@pytest.mark.parametrize(
    "pattern", ["nowhere/*.jpg", "a/*.jpg", "**/*.jpg", "b/*.md", "**/b?3.png", "**/b[!q]3.png"]
)
def test_a_pattern_without_images_is_a_one_line_error(folders, pattern):
    (folders / "b" / "notes.md").write_text("x")
    with pytest.raises(DataError, match=r"^no image matches [^\n]*: expected a pattern such as "):
        open_source(f"{folders}/{pattern}")


def test_braces_count_with_as_many_digits():
    assert expand_braces("x-{08..11}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]
    assert expand_braces("{1..2}/{0..1}") == ["1/0", "1/1", "2/0", "2/1"]
    assert expand_braces("{a,b}") == ["{a,b}"]
    with pytest.raises(DataError, match="expected a range with at most 100000 files"):
        expand_braces("{0..999999999}")


# Files that are not images.


def test_videos_are_refused_with_the_command_that_makes_frames(tmp_path):
    (tmp_path / "my clips").mkdir()
    video = tmp_path / "my clips" / "it's.MP4"
    video.write_bytes(b"x")
    (tmp_path / "list.txt").write_text("my clips/it's.MP4\n")
    command = r"ffmpeg -i '[^\n]*my clips/it'\"'\"'s.MP4' -vf fps=1 FRAMES/%06d.jpg"
    with pytest.raises(DataError, match=rf"^[^\n]*no image at any depth: 1 video [^\n]*{command}"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"is a video: expected images; `mkdir FRAMES && ffmpeg -i"):
        open_source(str(video))
    with pytest.raises(DataError, match="list.txt lists no image: 1 video not read"):
        open_source(str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match=r"no image matches .* \(1 video not read; `mkdir FRAMES"):
        open_source(f"{tmp_path}/**/*.MP4")


def test_other_files_among_images_are_counted_in_one_line(tmp_path, caplog):
    names = ("a.mp4", "b.mov", "c.zip", "d.tar.gz", "e.NEF", "f.jxl", "g.json", "h.jp2")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "1.png").write_bytes(png(1))
    (tmp_path / "2.JFIF").write_bytes(png(2))
    assert len(open_source(str(tmp_path))) == 2
    (record,) = caplog.records
    line = record.getMessage()
    assert "convert JPEG 2000" in line
    assert "2 videos not read; `mkdir FRAMES && ffmpeg -i " in line
    assert "2 archives not read; to read one, add it as a source: " in line
    assert "1 file of NEF or similar not read" in line
    assert "convert camera RAW to JPEG or PNG" in line
    assert "convert JPEG XL" in line
    assert "json" not in line


def test_avif_is_read_if_pillow_reads_it(tmp_path, caplog):
    (tmp_path / "1.png").write_bytes(png(1))
    reads = ".avif" in Image.registered_extensions()
    if reads:
        Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "2.avif")
    else:
        (tmp_path / "2.avif").write_bytes(b"x")
    source = open_source(str(tmp_path))
    assert len(source) == 1 + reads
    if reads:
        assert source[1].size == (32, 32)
    else:
        assert "pip install --upgrade pillow" in caplog.text


def test_one_image_as_a_source_is_refused_with_a_pattern(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"1.png is one image: expected .* such as '.*/\*.png'"):
        open_source(str(tmp_path / "1.png"))


def test_heic_is_read_if_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 0, 0))).save(tmp_path / "1.HEIC")
    assert open_source(str(tmp_path))[0].size == (64, 48)


def test_the_file_of_an_image_is_known_if_it_is_a_whole_file(folders):
    source = open_sources([make_zip(folders / "x.zip", [("9.png", png(9))]), str(folders / "b")])
    assert isinstance(source, CombinedImages)
    assert [source.path(index) for index in range(2)] == [None, folders / "b" / "3.png"]
