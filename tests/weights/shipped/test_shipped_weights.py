"""The weights that the package really ships, if any."""

from pathlib import Path

import ship
from pcd_hub.weights import shipped, store
from pcd_hub.weights.load import read_weight
from pcd_hub.weights.record import NOT_STATED

MAX_BYTES = 32_000_000


def test_every_shipped_weight_is_whole_and_all_are_small(monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", Path(shipped.__file__).parent)
    for name in shipped.names():
        folder = shipped.FOLDER / name
        ship.check(folder)
        record = read_weight(folder).record
        assert store.is_name(name)
        assert record.name == name
        assert record.model["stored_as"] == "float16"
        assert NOT_STATED not in record.licenses.values()
    files = [path for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
