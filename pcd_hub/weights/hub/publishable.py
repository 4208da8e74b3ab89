"""Check the record of a weight before the weight is published, and complete its licences."""

import re
from collections.abc import Mapping
from dataclasses import replace

from pcd_hub.errors import WeightError
from pcd_hub.weights.hub.address import is_commit
from pcd_hub.weights.record import HUB_LICENSES, NOT_STATED, WeightRecord, licensed_parts


def check_record(record: WeightRecord) -> None:
    """Check that the record suffices to reproduce the weight.

    Of an imported weight, it suffices that the record identifies the file that it was read from.

    Raises:
        WeightError: If it does not, or the weight was made by code with uncommitted changes.
    """
    if record.imported:
        _check_facts(record, imported=("file", "sha256"), model=("parameters", "image_size"))
        return
    wheel = re.fullmatch(r"[0-9a-f]{64}", str(record.code.get("wheel_sha256")))
    if not wheel and not is_commit(str(record.code.get("commit"))):
        raise WeightError(
            f"the record of {record.name} has neither a git commit nor a wheel's hash of the code "
            "that made it; run the recipe from a git clone, or from an installed wheel"
        )
    if record.code.get("dirty") is not False:
        raise WeightError(
            f"{record.name} was made by code with uncommitted changes (record: code.dirty); "
            "commit them, or install the package again; then run the recipe again, so that the "
            "weight can be reproduced"
        )
    _check_facts(
        record,
        teacher=("source", "sha256"),
        **({"start": ("source", "sha256")} if record.start else {}),
        data=("source", "fingerprint"),
        model=("parameters", "image_size"),
    )


def _check_facts(record: WeightRecord, **needed: tuple[str, ...]) -> None:
    for what, keys in needed.items():
        if missing := [key for key in keys if not getattr(record, what).get(key)]:
            raise WeightError(
                f"the record of {record.name} is incomplete: no {what}.{missing[0]}; "
                "export the weight again"
            )


def with_licenses(
    record: WeightRecord, given: Mapping[str, str | None], license_link: str | None
) -> WeightRecord:
    """Return the record with all licences.

    Raises:
        WeightError: If one is missing, or a given one contradicts the record.
    """
    chain = dict(record.licenses)
    if record.imported and any(given[what] for what in ("teacher", "data", "start")):
        raise WeightError(
            f"{record.name} was imported: the licences of its teacher and data are unknown to its "
            "record; give --license alone, which states all that binds whoever uses it"
        )
    if given["start"] and not record.start:
        raise WeightError(
            f"--start-license {given['start']}: {record.name} started from random weights; "
            "leave it out"
        )
    for what, choice in given.items():
        if what not in licensed_parts(record):
            continue
        stated = chain.get(what, NOT_STATED)
        option = "--license" if what == "weights" else f"--{what}-license"
        if choice and stated not in {NOT_STATED, choice}:
            raise WeightError(
                f"{option} {choice} contradicts the record of {record.name}: {stated}"
            )
        if stated == NOT_STATED and not choice:
            raise WeightError(
                f"the licence of the {what} of {record.name} is not stated; add {option} ID, such "
                "as apache-2.0. The licences of teacher and start may bind the student"
            )
        chain[what] = choice or stated
    if chain["weights"] not in HUB_LICENSES and not license_link:
        raise WeightError(
            f"the Hub has no licence {chain['weights']!r}; add --license-link with the URL of its "
            "text, or use an identifier such as apache-2.0, mit, cc-by-nc-4.0"
        )
    return replace(record, licenses=chain)
