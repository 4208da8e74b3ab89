"""The campaign finds a mixture; tests/weights/test_store.py runs a few seconds of it."""

import pytest
from safetensors.torch import load, save

import store_campaign
from pcd_hub.weights import store
from tests.weights.making import rewritten


def test_a_mixture_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PCD_HUB_HOME", str(tmp_path / "store"))
    name, export = store_campaign.NAMES[0], store_campaign.exported(tmp_path / "one", 1.0)
    store.add(name, export)
    for see in (store_campaign.read, store_campaign.create, store_campaign.plain):
        see(name)
    mixed = load((export / "model.safetensors").read_bytes())
    mixed["conv1.0.weight"].fill_(2.0)
    store.add(name, rewritten(export, {"model.safetensors": save(mixed, {"format": "pt"})}))
    for see in (store_campaign.read, store_campaign.create, store_campaign.plain):
        with pytest.raises(AssertionError, match=r"is a mixture of \[1.0, 2.0\]"):
            see(name)
    with pytest.raises(AssertionError, match="the list holds .* and not test_resnet.pcd_b"):
        store_campaign.show(store_campaign.NAMES[1])
