"""The commands about teachers: teachers, cache."""

import argparse
from dataclasses import asdict

from pcd_hub.cli.output import print_json
from pcd_hub.models.teacher_sources import catalogue as teacher_catalogue
from pcd_hub.train.teacher.cache.folders import default_place, list_caches, remove_cache


def _teachers(options: argparse.Namespace) -> None:
    if options.json:
        print_json([teacher_catalogue.facts(one) for one in teacher_catalogue.TEACHERS])
    else:
        print(teacher_catalogue.as_text())


def _cache(options: argparse.Namespace) -> None:
    place = options.dir or default_place()
    caches = list_caches(place)
    if options.remove is not None:
        caches = remove_cache(place, options.remove)
    if options.json:
        print_json([asdict(cache) for cache in caches])
        return
    for cache in caches:
        state = "removed" if options.remove is not None else f"{cache.complete:.0%} full"
        print(
            f"{cache.path.name}  {cache.num_bytes / 1e9:.2f} GB  {cache.teacher}  "
            f"{cache.images:,} images  {state}"
        )
    if not caches:
        print(f"no caches of a teacher in {place}")


RUN = {"teachers": _teachers, "cache": _cache}
"""The functions that run the commands, by name."""
