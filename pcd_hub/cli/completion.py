"""Print the script that completes commands, options and names of weights in a shell."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from pcd_hub.cli.parser import build_parser
from pcd_hub.errors import PCDHubError, pip_install

_STORE = (
    '"${PCD_HUB_HOME:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}}/pcd_hub}"'  # weights/store.py
)
_PREAMBLE = {
    "bash": f"""\
_pcd_hub_weights() {{
  local store={_STORE}
  compgen -W "$(cd "$store" 2>/dev/null && ls -d -- *.pcd* *.imported* 2>/dev/null)" -- "$1"
}}
_pcd_hub_runs() {{
  _pcd_hub_weights "$1"
  compgen -f -- "$1"
}}""",
    "zsh": f"""\
_pcd_hub_weights() {{
  local store={_STORE}
  compadd -- ${{(f)"$(cd "$store" 2>/dev/null && print -rl -- *.pcd*(N) *.imported*(N))"}}
}}
_pcd_hub_runs() {{
  _pcd_hub_weights
  _files
}}""",
}
_FUNCTIONS = {
    "_pcd_hub_weights": {"names", "name"},
    "_pcd_hub_runs": {"run", "run_or_name", "words"},
}
"""Functions that complete positional arguments, by the arguments' names."""


def run(options: argparse.Namespace) -> None:
    """Print the script of one shell.

    Raises:
        PCDHubError: If shtab, which writes the script, is not installed.
    """
    try:
        import shtab  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - an extra
    except ModuleNotFoundError as error:
        raise PCDHubError(f"{error}; {pip_install('completion')}") from error
    parser = build_parser(recipe_options=_recipe_options())
    for action in _actions(parser):
        if action.dest == "file":
            action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]
        for function, arguments in _FUNCTIONS.items():
            if action.dest in arguments and not action.option_strings:
                action.complete = dict.fromkeys(_PREAMBLE, function)  # pyright: ignore[reportAttributeAccessIssue]
    preambles: Any = _PREAMBLE  # shtab's annotation is too narrow
    print(shtab.complete(parser, shell=options.shell, preamble=preambles))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all arguments of all commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _recipe_options() -> dict[str, Sequence[str]]:
    """Return the options of each recipe; none if the extra ``train`` is not installed."""
    try:
        from pcd_hub.train.configs import distill, probes  # noqa: PLC0415 - needs the extra
        from pcd_hub.train.configs.fields import options  # noqa: PLC0415
    except ModuleNotFoundError:
        return {}
    from pcd_hub.train.own_images.short_options import RESUME, SHORT_OPTIONS  # noqa: PLC0415
    from pcd_hub.train.worth.configs.options import WorthConfig  # noqa: PLC0415

    def names(*configs: object) -> list[str]:
        return list(dict.fromkeys(option.name for config in configs for option in options(config)))

    files = ["--config", "--print-config"]
    of_probe = names(probes.LINEAR_SEG["folder"], probes.KNN["folder"])
    of_distill = names(distill.DISTILL["own_images"])
    return {
        "distill": [*SHORT_OPTIONS, RESUME, *files, *of_distill],
        "probe": [*files, *of_probe],
        "worth": [name for name in names(WorthConfig()) if name != "--data"],
        "compare": [name for name in names(probes.CompareConfig()) if name != "--runs"],
    }
