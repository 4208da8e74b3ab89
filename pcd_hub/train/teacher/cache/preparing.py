"""Create the folder of a cache, or check that the existing one belongs to the same teacher."""

import json
from pathlib import Path

from pcd_hub.errors import ConfigError
from pcd_hub.files.write import atomic_write
from pcd_hub.train.teacher.cache.folders import FACTS, OUTPUT, read_facts
from pcd_hub.train.teacher.cache.key import Facts, cache_name, same_output
from pcd_hub.train.teacher.cache.store import RECORDS


def prepare_folder(place: Path, facts: Facts, output: list[float]) -> Path:
    """Create the folder of a cache, or check that the existing one is of this teacher.

    Args:
        place: Folder of all caches.
        facts: What the cache depends on.
        output: The teacher's output by :func:`teacher_output`.

    Raises:
        ConfigError: If the folder belongs to another teacher, or cannot be written.
    """
    folder = place / cache_name(facts)
    remedy = f"remove it (pcd-hub cache --dir {place} --remove {folder.name})"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        has_records = (folder / RECORDS).exists()  # another process makes them after the facts
        if not (folder / FACTS).exists():
            if has_records:
                raise ConfigError(f"{folder} has no {FACTS}; {remedy}")
            atomic_write(folder / FACTS, json.dumps({**facts, OUTPUT: output}, indent=1) + "\n")
        found = read_facts(folder)
    except OSError as error:
        raise ConfigError(
            f"--teacher.cache: cannot write to {folder} ({error.strerror or error}); name another "
            "folder, or use --teacher.cache off"
        ) from error
    if found is None:
        raise ConfigError(f"{folder / FACTS} is damaged; {remedy}")
    if {key: value for key, value in found.items() if key != OUTPUT} != facts:
        raise ConfigError(f"{folder} was made for another teacher or other images; {remedy}")
    if not same_output(found[OUTPUT], output):
        raise ConfigError(
            f"{folder} was made by a teacher with the same weights but another output; {remedy}"
        )
    return folder
