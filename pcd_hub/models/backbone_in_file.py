"""Find the weights of a backbone in a checkpoint of any training code.

The tensors of the file are named by their path through its containers, joined by dots:
``state_dict.module.backbone.conv1.weight``. The backbone is below the prefix with the most keys of
the architecture (``state_dict.module.backbone.``). If several prefixes have equally many, an
exponential moving average (``ema`` in the prefix) is used, or the one that the caller prefers;
otherwise the file is refused. So is a file with further layers, as a ResNet-34 for a ResNet-18.
"""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from pcd_hub.errors import StudentError
from pcd_hub.files.strict_json import printable

_MAX_DEPTH = 8
_MAX_KEY_LENGTH = 256
_HEADS = ("classifier.", "fc.", "head.", "heads.")
_COUNTER = "num_batches_tracked"
"""Counters of batch norms, which old files lack and which do not affect the features."""


class Backbone(NamedTuple):
    """The backbone in a checkpoint."""

    state: dict[str, Tensor]
    """Weights with timm's keys."""
    prefix: str
    """Where they are in the file."""
    unused: str
    """Summary of the tensors that are not used; empty if there are none."""


def find_backbone(
    loaded: object,
    expected: Collection[str],
    *,
    what: str,
    naming: str = "timm",
    prefix: str | None = None,
    preferred: Sequence[str] = (),
    remedy: str = "save the state dict of one of them alone",
) -> Backbone:
    """Find the tensors with the keys of an architecture in a loaded checkpoint.

    Args:
        loaded: The content of the file.
        expected: Keys of the architecture.
        what: File and architecture, for error messages: "FILE for resnet18".
        naming: The library whose keys these are, for error messages.
        prefix: The prefix, if the caller knows it.
        preferred: Regular expressions; the first that one of several prefixes matches decides.
        remedy: What to do about several prefixes, for the error message.

    Raises:
        StudentError: If keys are missing, there are further layers, or several prefixes have all
            keys.
    """
    tensors = dict(_named_tensors(loaded))
    needed = _without_counters(expected)
    if prefix is None:
        found = _prefixes(tensors, needed)
        if max(map(len, found.values()), default=0) < len(needed) / 2:
            raise StudentError(
                f"{what}: expected {naming}'s keys, such as {next(iter(needed), '')}, found "
                f"{_summary(tensors) or 'no tensors'}"
            )
        prefix = _one_of(found, what, preferred, remedy)
    inside = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    place = f"below {printable(prefix)!r}" if prefix else "from the file"
    if missing := [key for key in needed if key not in inside]:
        raise StudentError(
            f"{what}: {len(missing)} of its {len(needed)} tensors are missing {place} "
            f"(first {', '.join(missing[:3])}); is it another architecture, or "
            f"another library's naming? Expected {naming}'s keys"
        )
    if further := _further_layers(inside, expected):
        raise StudentError(
            f"{what}: {len(further)} tensors {place.replace('from', 'in')} are of layers that it "
            f"does not have (first {printable(further[0])[:80]}); is it another architecture?"
        )
    state = {key: inside[key] for key in expected if key in inside}
    used = {prefix + key for key in state}
    return Backbone(state, prefix, _summary((key for key in tensors if key not in used), prefix))


def count_keys(loaded: object, expected: Collection[str]) -> int:
    """Return how many keys of an architecture are below one prefix of a loaded checkpoint."""
    found = _prefixes(dict(_named_tensors(loaded)), _without_counters(expected))
    return max(map(len, found.values()), default=0)


def split_at_prefix(
    loaded: object, expected: Collection[str], *, what: str, preferred: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return the tensors below the prefix of an architecture, and those beside it.

    None if fewer than half of its keys are below one prefix: the keys may have other names.
    Names begin where they leave the prefix. Beside it are the others of its container, such as
    ``state_dict``: not the optimizer, nor copies of the backbone in other containers.

    Args:
        loaded: The content of the file.
        expected: Keys of the architecture.
        what: The file, for error messages.
        preferred: Regular expressions; the first that one of several prefixes matches decides.

    Raises:
        StudentError: If several prefixes have equally many.
    """
    tensors = dict(_named_tensors(loaded))
    needed = _without_counters(expected)
    found = _prefixes(tensors, needed)
    if max(map(len, found.values()), default=0) < len(needed) / 2:
        return None
    prefix = _one_of(found, what, preferred, "save the state dict of one of them alone")
    inside = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
    first = prefix.partition(".")[0]
    in_container = isinstance(loaded, Mapping) and isinstance(loaded.get(first), Mapping)
    container = f"{first}." if in_container else ""
    beside = [key for key in tensors if key.startswith(container) and not key.startswith(prefix)]
    return inside, {
        ".".join(key.split(".")[_shared(key, prefix) :]): tensors[key] for key in beside
    }


def _without_counters(keys: Iterable[str]) -> dict[str, None]:
    return {key: None for key in keys if not key.endswith(_COUNTER)}


def _named_tensors(
    value: object, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts; a dict that occurs repeatedly counts once."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield ".".join(path), value
    elif isinstance(value, Mapping) and id(value) not in seen and len(path) < _MAX_DEPTH:
        seen.add(id(value))
        for key, inner in value.items():
            if len(name := str(key)) <= _MAX_KEY_LENGTH:
                yield from _named_tensors(inner, (*path, name), seen)


def _prefixes(
    tensors: Mapping[str, Tensor], needed: Collection[str]
) -> defaultdict[str, list[str]]:
    """Return the needed keys that are found, by the prefix in front of them."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key in tensors:
        for start in (0, *(match.end() for match in re.finditer(r"\.", key))):
            if key[start:] in needed:
                found[key[:start]].append(key[start:])
    return found


def _one_of(
    found: Mapping[str, Sequence[str]], what: str, preferred: Sequence[str], remedy: str
) -> str:
    """Return the prefix with the most keys."""
    most = max(map(len, found.values()))
    best = [prefix for prefix, keys in found.items() if len(keys) == most]
    for pattern in ("", r"(^|[._])ema([._]|$)", *preferred):
        matching = [prefix for prefix in best if re.search(pattern, prefix)]
        if len(matching) == 1:
            return matching[0]
    shown = ", ".join(repr(printable(prefix)[:80]) for prefix in best[:3])
    raise StudentError(f"{what}: {len(best)} backbones are below {shown}; {remedy}")


def _further_layers(found: Iterable[str], expected: Collection[str]) -> list[str]:
    """Return the keys that differ from an expected one only in a number, as ``layer1.2.bn1``.

    A classifier may have any number of layers: it is not used.
    """
    numbers = re.compile(r"\d+")
    alike = {numbers.sub("#", key) for key in expected if not key.startswith(_HEADS)}
    return [key for key in found if key not in expected and numbers.sub("#", key) in alike]


def _summary(keys: Iterable[str], prefix: str = "") -> str:
    """Return ``fc.* (2), head.* (4)`` for the keys of tensors outside of ``prefix``."""
    groups = Counter(_group(key, prefix) for key in keys)
    shown = [f"{printable(name)[:80]} ({count})" for name, count in groups.most_common(5)]
    more = sum(groups.values()) - sum(count for _, count in groups.most_common(5))
    return ", ".join(shown + ([f"{more} more"] if more else []))


def _group(key: str, prefix: str) -> str:
    """Return the part of a key down to where it leaves ``prefix``, as ``state_dict.head.*``."""
    parts, shared = key.split("."), _shared(key, prefix)
    return f"{'.'.join(parts[: shared + 1])}.*" if len(parts) > shared + 1 else key


def _shared(key: str, prefix: str) -> int:
    """Return how many parts of a key, from the first one, are those of ``prefix``."""
    pairs = zip(key.split("."), prefix.split("."), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
