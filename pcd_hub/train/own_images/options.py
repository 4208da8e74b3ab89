"""Short options of a distillation's command line, which stand for longer ones."""

from collections.abc import Iterator

SHORT_OPTIONS = {
    "--hours": "--run.hours",
    "--teacher": "--teacher.source",
    "--student": "--student.arch",
    "--output-dir": "--run.output-dir",
}
"""Options by their short names."""


def with_long_options(arguments: list[str]) -> list[str]:
    """Return the arguments with each short option replaced by the option it stands for."""
    return list(_long_options(arguments))


def _long_options(arguments: list[str]) -> Iterator[str]:
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        yield f"{SHORT_OPTIONS.get(flag.replace('_', '-'), flag)}{equals}{value}"
