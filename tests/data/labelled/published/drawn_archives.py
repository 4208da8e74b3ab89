"""Small archives in the layouts of the published sets, and a server on this machine for them."""

import dataclasses
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from pcd_hub.data.labelled.published.sets import DTD, EUROSAT, OXFORD_PETS, Archive, PublishedSet

BREEDS = ("Abyssinian", "american_bulldog", "Birman")
TEXTURES = ("banded", "polka-dotted")
LAND = ("Forest", "SeaLake")


def picture(suffix: str, *, level: int = 100, size: int = 24) -> bytes:
    pixels = np.random.default_rng(level).integers(level, level + 50, (size, size, 3))
    return _encoded(Image.fromarray(pixels.astype(np.uint8)), suffix)


def _trimap() -> bytes:
    values = np.full((24, 24), 2, np.uint8)
    values[4:20, 4:20], values[6:18, 6:18] = 3, 1
    return _encoded(Image.fromarray(values), "png")


def _encoded(image: Image.Image, suffix: str) -> bytes:
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "png": "PNG"}[suffix])
    return file.getvalue()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def pets_archives() -> dict[str, bytes]:
    """23 training and 2 test images of each of three breeds, and files that are not used."""
    image, trimap = picture("jpg"), _trimap()
    images, masks, lists = {}, {}, {"trainval": [], "test": []}
    for breed_id, breed in enumerate(BREEDS, start=1):
        for number in range(1, 26):
            name = f"{breed}_{number}"
            lists["trainval" if number > 2 else "test"].append(f"{name} {breed_id} 1 1\n")
            images[f"images/{name}.jpg"] = image
            masks[f"annotations/trimaps/{name}.png"] = trimap
            masks[f"annotations/trimaps/._{name}.png"] = b"not an image"
    images["images/Abyssinian_100.mat"] = b"not an image"
    text = {f"annotations/{name}.txt": "".join(rows).encode() for name, rows in lists.items()}
    return {"images.tar.gz": tar_gz(images), "annotations.tar.gz": tar_gz(masks | text)}


def eurosat_archives() -> dict[str, bytes]:
    """410 and 405 images of two classes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for label, count, level in zip(LAND, (410, 405), (20, 180), strict=True):
            raw = picture("jpg", level=level, size=8)
            archive.mkdir(f"2750/{label}")
            for number in range(1, count + 1):
                archive.writestr(f"2750/{label}/{label}_{number}.jpg", raw)
    return {"EuroSAT.zip": out.getvalue()}


def dtd_archives() -> dict[str, bytes]:
    """4 training, 2 validation and 3 test images of two classes."""
    files, lists = {}, {"train": [], "val": [], "test": []}
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 3
    for level, label in zip((20, 180), TEXTURES, strict=True):
        for number, split in enumerate(splits):
            name = f"{label}/{label}_{number:04}.jpg"
            files[f"dtd/images/{name}"] = picture("jpg", level=level)
            lists[split].append(f"{name}\n")
    text = {f"dtd/labels/{split}1.txt": "".join(rows).encode() for split, rows in lists.items()}
    return {"dtd-r1.0.1.tar.gz": tar_gz(files | text)}


DRAWN = (
    (OXFORD_PETS, pets_archives),
    (EUROSAT, eurosat_archives),
    (DTD, dtd_archives),
)


class Server:
    """Files by path, and what was asked for."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_after: int | None = None
        """Bytes after which the next transfer is cut off."""

    def serve(self, real: PublishedSet, archives: Mapping[str, bytes]) -> PublishedSet:
        """Return the set with this server's addresses and the md5 sums of these archives."""
        served = []
        for name, raw in archives.items():
            path = f"/{real.name}/{name}"
            self.files[path] = raw
            md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            served.append(Archive(url=f"{self.address}{path}", md5=md5))
        return dataclasses.replace(real, archives=tuple(served), megabytes=1)


@contextmanager
def running_server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            raw = server.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            # torchvision's first request reads no body, it looks for a redirection.
            is_transfer = server.requests.count(self.path) % 2 == 0
            if is_transfer and server.cut_after is not None:
                raw, server.cut_after = raw[: server.cut_after], None
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
