"""Verify every published weight on the Hub (or on the one that HF_ENDPOINT names).

    python scripts/verify_release.py                    # the package's own list
    python scripts/verify_release.py --records FILE     # another list, as `pcd-hub publish` prints

Each weight is fetched at its commit into an empty cache. Manifest and weights must have the listed
sha256, the model the listed number of parameters and features; its card must be rendered from its
record, and plain timm (``hf-hub:``) must load the same tensors. Prints one line for each; the exit
status is 1 if any differs.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import timm
import torch
from huggingface_hub import constants

from pcd_hub.data.multiband.names import RGB
from pcd_hub.errors import PCDHubError, WeightError
from pcd_hub.weights.cards.card import render_card
from pcd_hub.weights.cards.metadata import needs_import
from pcd_hub.weights.create import create_model, golden_features
from pcd_hub.weights.hub.fetch import fetch
from pcd_hub.weights.hub.published import PublishedWeight, published_weights, read_list
from pcd_hub.weights.layout import CARD_FILE, WEIGHTS_FILE
from pcd_hub.weights.manifest import read_manifest
from pcd_hub.weights.record import WeightRecord

FEATURE_TOLERANCE = 1e-3
"""Relative to the largest feature: other machines round differently."""


def check(weight: PublishedWeight) -> None:
    """Verify one weight.

    Raises:
        WeightError: If anything differs from the list; the message names it.
        HubError: If it cannot be downloaded.
    """
    fetched = fetch(weight.reference, manifest_sha256=weight.manifest_sha256)
    manifest = read_manifest(fetched.folder)
    record = WeightRecord.from_dict(manifest["record"])
    digests = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    model = create_model(weight.reference, manifest_sha256=weight.manifest_sha256).eval()
    _same("name", record.name, weight.name)
    _same("weights", digests[WEIGHTS_FILE], weight.weights_sha256)
    _same("licence", record.licenses["weights"], weight.license)
    _same("parameters", sum(p.numel() for p in model.parameters()), weight.parameters)
    in_chans = len(record.data.get("bands", RGB))
    features = golden_features(model, record.model["image_size"], in_chans=in_chans)
    _check_features(features, weight.features)
    _check_card(fetched.folder, record, manifest, weight)
    if not needs_import(record.architecture):
        _check_plain_timm(model, weight)


def _same(what: str, found: object, listed: object) -> None:
    if found != listed:
        raise WeightError(f"its {what} is {found}, expected {listed}")


def _check_features(found: tuple[float, ...], listed: tuple[float, ...]) -> None:
    one, other = torch.tensor(found), torch.tensor(listed)
    bound = FEATURE_TOLERANCE * other.abs().max()
    if one.shape != other.shape or not (one - other).abs().max() <= bound:  # so that NaN differs
        raise WeightError(f"its features are {found}, expected {listed}")


def _check_card(
    folder: Path, record: WeightRecord, manifest: dict, weight: PublishedWeight
) -> None:
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    others = [entry for entry in manifest["files"] if entry["path"] != CARD_FILE]
    link = card.partition("Text of the weights' licence: <")[2].partition(">")[0] or None
    if render_card(record, files=others, repo=weight.repo, license_link=link) != card:
        raise WeightError("its card is not rendered from its record")


def _check_plain_timm(model: torch.nn.Module, weight: PublishedWeight) -> None:
    try:
        # An empty cache: it must come from the Hub.
        with tempfile.TemporaryDirectory() as cache:
            state = timm.create_model(
                f"hf-hub:{weight.reference}", pretrained=True, cache_dir=cache
            ).state_dict()
    except Exception as error:  # continue with the other weights
        raise WeightError(f"plain timm cannot load it: {type(error).__name__}") from error
    if any(not torch.equal(value, state[key]) for key, value in model.state_dict().items()):
        raise WeightError("plain timm loads other tensors")


def main() -> None:
    """Verify every weight of the list, each with an empty cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=Path, help="verify this JSON list, not the package's")
    given = parser.parse_args()
    try:
        weights = read_list(given.records) if given.records else published_weights()
    except PCDHubError as error:
        sys.exit(str(error))
    differing = 0
    for weight in weights.values():
        with tempfile.TemporaryDirectory() as home:
            os.environ["PCD_HUB_HOME"] = constants.HF_HUB_CACHE = home
            try:
                check(weight)
                print(f"same     {weight.name}  {weight.reference}", flush=True)
            except PCDHubError as error:
                differing += 1
                print(f"DIFFERS  {weight.name}  {error}", flush=True)
    print(f"{len(weights)} published weights, {differing} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
