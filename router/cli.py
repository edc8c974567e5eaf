"""The command `azureml-fe`: its syntax, its exit codes and how errors are shown.

Lives here: one small handler for each command, which calls the part that does the work. Must not live here: that work.
Parts are imported by the handler that needs them, so that `check` and `--help` load no event loop.

Exit codes: 0 done, 1 failed while running, 2 bad usage or settings. An error is one line on standard error.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from router import __version__
from router.argument import address, count, percent, positive, url
from router.authority import authority
from router.build import hot_path
from router.cluster.local.file import is_router_file, load_router_file
from router.cluster.local.keys import KeyStore
from router.cluster.local.summary import router_summary
from router.cluster.local.token_keys import TokenKeyFile
from router.cluster_settings import POD_DEFAULTS
from router.settings import (
    CONFIG_VARIABLE,
    ROUTER_SETTINGS,
    flag_name,
    load_settings,
    parse_router_values,
)
from router.values import Kind, SettingsError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_METAVARS = {Kind.INT: "N", Kind.RATE: "on|off|RATE"}

_IN_CLUSTER = ("kubeconfig",)
"""Settings whose flags make no sense elsewhere."""

Handler = Callable[[argparse.Namespace], int]


class _UsageError(Exception):
    """Bad words on the command line."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage text before it."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        # A flag added later must not change what an abbreviation in someone's script means.
        self.allow_abbrev = False

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is the command line without the program, by default the process's own. Returns the exit
    code. `--help` and `--version` raise `SystemExit`, as argparse has it."""
    try:
        arguments = _parser().parse_args(argv)
        handler: Handler = arguments.handler
        return handler(arguments)
    except (SettingsError, _UsageError) as error:
        _complain(str(error))
        return EXIT_USAGE
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:  # before, or without, a part that has its own way to end
        return EXIT_FAILED


def _complain(message: str) -> None:
    print("azureml-fe:", " ".join(message.split()), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="azureml-fe", description="An inference router in front of deployed models.")
    parser.add_argument("--version", action="version", version=f"azureml-fe {__version__} ({hot_path()})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_local(commands)
    _add_serve(commands)
    _add_check(commands)
    _add_keys(commands)
    _add_token(commands)
    _add_plan(commands)
    _add_top(commands)
    return parser


def _add_local(commands: Any) -> None:
    local = commands.add_parser(
        "local",
        help="serve models on this machine",
        description="Start the replicas that FILE describes on this machine and route requests to them.",
    )
    local.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="the services; the shipped example without it"
    )
    local.add_argument(
        "--peer",
        dest="peers",
        action="append",
        default=[],
        type=address,
        metavar="HOST:PORT",
        help="join the router whose peer port this is: serve what it serves, and route as one; may be repeated",
    )
    _add_shared_flags(local)
    local.set_defaults(handler=_local)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve the models of a Kubernetes cluster",
        description="Route requests to the models of the cluster that this pod is in, and scale them.",
    )
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the router (sections router, token_issuers)"
    )
    _add_shared_flags(serve, in_cluster=True)
    serve.set_defaults(handler=_serve)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="validate settings",
        description="Validate FILE, or what is in a cluster, and say what it sets up; nothing is started or changed. "
        "Addresses of FILE that do not answer are named on standard error, and are no fault of it.",
    )
    check.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the services, or settings for `serve`")
    _add_cluster_flags(check)
    check.set_defaults(handler=_check)


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser(
        "keys",
        help="show and renew keys",
        description="Keys of a service: generated by `azureml-fe local`, or in a cluster.",
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="show a service's keys", description="Print the keys of SERVICE.")
    show.add_argument("--key", choices=("primary", "secondary"), help="only this one, and nothing else")
    _add_service(show)
    show.set_defaults(handler=_show_keys)
    regenerate = actions.add_parser(
        "regenerate",
        help="make one of a service's keys anew",
        description="Replace one key of SERVICE and print the new one. The other stays valid for clients to move to.",
    )
    regenerate.add_argument("--key", choices=("primary", "secondary"), required=True, help="which one")
    _add_service(regenerate)
    regenerate.set_defaults(handler=_regenerate_key)


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="make a token",
        description="Print a token for SERVICE, signed with the keys of `azureml-fe local` or of a router in a "
        "cluster, as JSON: accessToken, refreshAfter and expiryOn (seconds since 1970), tokenType.",
    )
    token.add_argument("--ttl", metavar="SECONDS", help="how long it is valid; default: token_lifetime_seconds")
    token.add_argument("--bare", action="store_true", help="only the token itself")
    token.add_argument("--router-namespace", metavar="NAME", help="where the cluster's router runs, if elsewhere")
    _add_service(token)
    token.set_defaults(handler=_token)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("--state-dir", default=argparse.SUPPRESS, help="where `azureml-fe local` keeps its state")
    _add_cluster_flags(parser)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="how many replicas a load needs",
        description="How many replicas, and how large a router, a load needs: Azure ML's published formula, and what "
        "queueing theory says of the waits.",
    )
    plan.add_argument("--rps", type=positive, required=True, metavar="R", help="requests per second")
    plan.add_argument("--seconds", type=positive, required=True, metavar="T", help="time that one request takes")
    plan.add_argument(
        "--target", type=percent, default=70.0, metavar="PERCENT", help="utilization to aim at; default: 70"
    )
    plan.add_argument(
        "--max-concurrent", type=count, default=1, metavar="N", help="requests that one replica handles at a time"
    )
    plan.add_argument(
        "--wait", type=positive, default=500.0, metavar="MS", help="longest wait for a replica; default: 500"
    )
    plan.add_argument(
        "--refused", type=percent, default=1.0, metavar="PERCENT", help="requests that may be refused; default: 1"
    )
    plan.add_argument("--json", action="store_true", help="as one line of JSON")
    plan.set_defaults(handler=_plan)


def _add_top(commands: Any) -> None:
    top = commands.add_parser(
        "top",
        help="live view in the terminal",
        description="Show what a router does, live. URL is its admin port's; by default that of this machine. "
        "With --cluster the leader's of a cluster, through its API server, which needs the right to get pods/proxy.",
    )
    top.add_argument("url", nargs="?", type=url, metavar="URL", help="such as http://127.0.0.1:9090")
    _add_cluster_flags(top)
    top.add_argument("--once", action="store_true", help="print it once and end")
    top.set_defaults(handler=_top)


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("a Kubernetes cluster")
    flags.add_argument("--cluster", action="store_true", help="the one that this pod is in, or that --kubeconfig names")
    flags.add_argument("--kubeconfig", type=Path, metavar="PATH", help="where the API server is; implies --cluster")
    flags.add_argument(
        "--namespace",
        dest="namespaces",
        action="append",
        default=[],
        metavar="NAME",
        help="only this namespace; may be repeated; implies --cluster",
    )


def _means_cluster(arguments: argparse.Namespace) -> bool:
    return bool(arguments.cluster or arguments.kubeconfig or arguments.namespaces)


def _add_shared_flags(parser: argparse.ArgumentParser, *, in_cluster: bool = False) -> None:
    flags = parser.add_argument_group("settings of the router", "Each overrides the environment and FILE.")
    for setting in ROUTER_SETTINGS:
        if setting.flag and (in_cluster or setting.name not in _IN_CLUSTER):
            default = setting.default_means.replace("`", "") or setting.default
            if in_cluster:
                default = POD_DEFAULTS.get(setting.name, default)
            flags.add_argument(
                flag_name(setting.name),
                dest=setting.name,
                metavar=_METAVARS.get(setting.kind, setting.name.rpartition("_")[2].upper()),
                default=argparse.SUPPRESS,
                help=f"{setting.about} Allowed: {setting.range_text}; default: {default}".replace("%", "%%"),
            )


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {setting.name: getattr(arguments, setting.name) for setting in ROUTER_SETTINGS if setting.name in arguments}
    return parse_router_values(given, lambda name: f"flag {flag_name(name)}")


def _serve(arguments: argparse.Namespace) -> int:
    flags = _flags(arguments)

    from router.serve import run_serve

    return run_serve(arguments.config, flags)


def _local(arguments: argparse.Namespace) -> int:
    flags = _flags(arguments)

    from router.local import run_local

    if arguments.peers and arguments.file is not None:
        raise SettingsError("FILE", str(arguments.file), "not allowed with --peer: the peers tell what is served")
    return run_local(arguments.file, flags, arguments.peers)


def _check(arguments: argparse.Namespace) -> int:
    if _means_cluster(arguments):
        return _check_cluster(arguments)
    if arguments.file is None:
        raise _UsageError("FILE or --cluster is missing (see azureml-fe check --help)")
    if is_router_file(arguments.file):
        given, issuers = load_router_file(arguments.file)
        load_settings(environ=os.environ, file=given)  # for the rules between settings
        lines = router_summary(given, issuers)
        silent: list[str] = []
    else:
        from router.checking import check_local

        lines, silent = check_local(arguments.file, os.environ)
    for line in lines:
        print(line)
    for line in silent:
        _complain(line)
    return EXIT_DONE


def _check_cluster(arguments: argparse.Namespace) -> int:
    if arguments.file is not None:
        raise SettingsError("FILE", str(arguments.file), "not allowed with --cluster")

    from router.cluster.kubernetes.commands import check_cluster

    named = os.environ.get(CONFIG_VARIABLE)
    file, _ = load_router_file(Path(named)) if named else ({}, {})
    settings = load_settings(environ=os.environ, file=file)
    lines, wrong = check_cluster(
        arguments.namespaces, settings.pod_namespace, arguments.kubeconfig, sizes_itself=settings.self_scaling_enabled
    )
    for line in lines:
        print(line)
    for line in wrong:
        _complain(line)
    return EXIT_USAGE if wrong else EXIT_DONE


def _plan(arguments: argparse.Namespace) -> int:
    from router.plan import plan

    try:
        made = plan(
            rps=arguments.rps,
            seconds=arguments.seconds,
            target_percent=arguments.target,
            max_concurrent=arguments.max_concurrent,
            wait_seconds=arguments.wait / 1000,
            accepted_refusals=arguments.refused / 100,
        )
    except ValueError as error:
        raise _UsageError(str(error)) from error
    for line in [json.dumps(made.as_dict())] if arguments.json else made.lines():
        print(line)
    return EXIT_DONE


def _top(arguments: argparse.Namespace) -> int:
    from router.top import from_cluster, from_url, run_top

    if _means_cluster(arguments):
        if arguments.url is not None:
            raise SettingsError("URL", arguments.url, "not allowed with --cluster")

        from router.cluster.kubernetes.looking import status_of_cluster

        if len(arguments.namespaces) > 1:
            raise SettingsError("--namespace", arguments.namespaces[1], "only one, the router's own")
        namespace = arguments.namespaces[0] if arguments.namespaces else None
        port = load_settings(environ=os.environ).admin_port
        with status_of_cluster(namespace, arguments.kubeconfig, port) as look:
            return run_top(from_cluster(look), sys.stdout, once=arguments.once)
    if arguments.url is None:
        settings = load_settings(environ=os.environ)
        arguments.url = f"http://{authority(settings.admin_host, settings.admin_port)}"
    return run_top(from_url(arguments.url), sys.stdout, once=arguments.once)


def _show_keys(arguments: argparse.Namespace) -> int:
    keys: Mapping[Any, str]
    if _means_cluster(arguments):
        from router.cluster.kubernetes.commands import show_keys

        keys = show_keys(arguments.service, arguments.namespaces, arguments.kubeconfig)
    else:
        keys = _key_store(arguments).existing(arguments.service)
    if arguments.key is not None and arguments.key not in keys:
        raise SettingsError("--key", arguments.key, f"service {arguments.service} has no such key")
    if arguments.key is not None:
        print(keys[arguments.key])
    else:
        for name, key in keys.items():
            print(f"{name}: {key}")
    return EXIT_DONE


def _regenerate_key(arguments: argparse.Namespace) -> int:
    if _means_cluster(arguments):
        from router.cluster.kubernetes.commands import regenerate_key

        print(regenerate_key(arguments.service, arguments.key, arguments.namespaces, arguments.kubeconfig))
        return EXIT_DONE
    store = _key_store(arguments)
    store.existing(arguments.service)  # a misspelt name must not make keys for nobody
    print(store.regenerate(arguments.service, arguments.key))
    return EXIT_DONE


def _key_store(arguments: argparse.Namespace) -> KeyStore:
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    return KeyStore(load_settings(environ=os.environ, flags=flags).state_dir, tell=_complain)


def _token(arguments: argparse.Namespace) -> int:
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    settings = load_settings(environ=os.environ, flags=flags)
    lifetime = settings.token_lifetime_seconds
    service, ttl = arguments.service, arguments.ttl
    if _means_cluster(arguments):
        from router.cluster.kubernetes.commands import cluster_token

        document = cluster_token(
            service, ttl, arguments.namespaces, arguments.router_namespace or settings.pod_namespace,
            arguments.kubeconfig,
            default_lifetime_seconds=lifetime,
        )  # fmt: skip
    else:
        import asyncio

        from router.tokens.issuing import issue_token

        store = TokenKeyFile(settings.state_dir)
        document = asyncio.run(issue_token(store, service, ttl, default_lifetime_seconds=lifetime))
    print(document["accessToken"] if arguments.bare else json.dumps(document))
    return EXIT_DONE
