"""The campaign detects mixed versions; tests/weights/test_store.py runs it for some seconds."""

import pytest
from safetensors.torch import load, save

from pcd_hub.weights import store
from tests.stress import store_campaign
from tests.weights.making import rewritten


def test_a_mixture_of_versions_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "store"))
    name, export = store_campaign.NAMES[0], store_campaign.export_constant(tmp_path / "one", 1.0)
    store.add(name, export)
    for read in (store_campaign.read, store_campaign.create, store_campaign.plain):
        read(name)
    mixed = load((export / "model.safetensors").read_bytes())
    mixed["conv1.0.weight"].fill_(2.0)
    store.add(name, rewritten(export, {"model.safetensors": save(mixed, {"format": "pt"})}))
    for read in (store_campaign.read, store_campaign.create, store_campaign.plain):
        with pytest.raises(AssertionError, match=r"is a mixture of \[1.0, 2.0\]"):
            read(name)
    with pytest.raises(AssertionError, match="the list has .*, but not test_resnet.pcd_b"):
        store_campaign.list_all(store_campaign.NAMES[1])
