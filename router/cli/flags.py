"""The parser of the command line, and the flags that several commands have. `syntax` has the commands."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from router.config.declaration import declared_settings
from router.config.kubernetes_settings import ROUTER_NAME, KubernetesSettings
from router.config.router import ROUTER_SETTINGS, SERVE_DEFAULTS, flag_name
from router.config.schema import Setting, SettingKind

_METAVARS = {SettingKind.INT: "N", SettingKind.FRACTION: "on|off|RATE"}

_CLUSTER_ONLY = frozenset(setting.name for setting in declared_settings(KubernetesSettings))
"""Settings that are flags of `serve` only."""


class UsageError(Exception):
    """An invalid command line. `str()` is one line."""


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError and rejects abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # With abbreviations, a new flag could change the meaning of an existing script.
        self.allow_abbrev = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def check_no_rest(self, rest: Sequence[str]) -> None:
        """Raise UsageError for arguments that this parser does not have."""
        if not rest:
            return
        flag = rest[0].partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected argument {rest[0]!r}")
        self.error(f"unknown flag {flag}{_suggestion(flag, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"unknown command {value!r}{_suggestion(str(value), action.choices)}")
        super()._check_value(action, value)


def _suggestion(given: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(given, list(known), n=1, cutoff=0.6)
    return f"; did you mean {similar[0]}?" if similar else ""


def add_output(
    parser: argparse.ArgumentParser, default: str = "text", *, more: Sequence[str] = (), text: str = ""
) -> None:
    """Add the flag for the format. `more` has further formats, and `text` their meaning."""
    help_text = f"format; default: {default}" + (f"; {text}" if text else "")
    parser.add_argument("--output", choices=("text", "json", *more), default=default, help=help_text)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select a cluster and namespaces of it."""
    flags = parser.add_argument_group("a Kubernetes cluster")
    flags.add_argument("--cluster", action="store_true", help="use the cluster of this pod, or of the kubeconfig file")
    flags.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="PATH",
        help="the kubeconfig file; implies --cluster; default: KUBECONFIG or ~/.kube/config",
    )
    flags.add_argument(
        "--namespace",
        dest="namespaces",
        action="append",
        default=[],
        metavar="NAME",
        help="only this namespace; may be repeated; implies --cluster",
    )


def add_router(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select the router of a cluster."""
    parser.add_argument(
        "--router-namespace", metavar="NAME", help="the namespace of the cluster's router; default: that of this pod"
    )
    add_router_name(parser)


def add_router_name(parser: argparse.ArgumentParser) -> None:
    """Add the flag with the name of the router."""
    parser.add_argument(
        "--router-name", metavar="NAME", help=f"the name of the cluster's Deployment of routers; default: {ROUTER_NAME}"
    )


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the service of a command, and the flags that say where it is."""
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("--state-dir", default=argparse.SUPPRESS, help="the state directory of `azureml-fe local`")
    add_cluster_flags(parser)
    add_router(parser)


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the flag with the name of the service of converted files."""
    parser.add_argument(
        "--name",
        metavar="SERVICE",
        help="for files of Azure ML: the name of the service; default: the endpoint's, or for v1 that of the directory",
    )


def add_setting_flags(parser: argparse.ArgumentParser, *, in_cluster: bool = False) -> None:
    """Add a flag for each setting of the router. `--help` shows the important ones, `--help-all` all."""
    flags = parser.add_argument_group(
        "settings of the router", "Each overrides the environment and FILE. --help-all lists the flags of all settings."
    )
    hidden = []
    for setting in ROUTER_SETTINGS:
        if in_cluster or setting.name not in _CLUSTER_ONLY:
            text = _setting_help(setting, in_cluster=in_cluster)
            action = flags.add_argument(
                flag_name(setting.name),
                dest=setting.name,
                metavar=_METAVARS.get(setting.kind, setting.name.rpartition("_")[2].upper()),
                default=argparse.SUPPRESS,
                help=text if setting.flag else argparse.SUPPRESS,
            )
            if not setting.flag:
                hidden.append((action, text))
    parser.add_argument("--help-all", action=_HelpAll, hidden=hidden)


def _setting_help(setting: Setting, *, in_cluster: bool) -> str:
    default = setting.default_text.replace("`", "") or setting.default
    if in_cluster:
        default = SERVE_DEFAULTS.get(setting.name, default)
    return f"{setting.description} Allowed: {setting.range_text}; default: {default}".replace("%", "%%")


class _HelpAll(argparse.Action):
    """Prints the help with the flags that `--help` omits."""

    def __init__(self, hidden: Sequence[tuple[argparse.Action, str]], **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, help="show the flags of all settings and exit", **options)
        self._hidden = hidden

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        for action, text in self._hidden:
            action.help = text
        parser.print_help()
        parser.exit()
