"""The syntax of the command line: commands, arguments, help texts. `main` runs the commands."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from router import __version__
from router.cli.arguments import address, count, percent, positive, url
from router.cli.flags import (
    Parser,
    add_cluster_flags,
    add_name,
    add_output,
    add_router,
    add_router_name,
    add_setting_flags,
)
from router.cli.key_syntax import add_keys, add_names, add_token
from router.telemetry.build_info import hot_path

SHELLS = ("bash", "zsh", "tcsh")
"""The shells that `azureml-fe completion` supports."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments. The attribute `command` is one of the names in `main.HANDLERS`. Raises
    UsageError."""
    arguments, rest = make_parser().parse_known_args(argv)
    arguments.parser.check_no_rest(rest)
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(prog="azureml-fe", description="An inference router in front of deployed models.")
    parser.add_argument("-V", "--version", action="version", version=f"azureml-fe {__version__} ({hot_path()})")
    parser.set_defaults(command="help", topic=[], parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_local(commands)
    _add_serve(commands)
    _add_check(commands)
    _add_config(commands)
    add_keys(commands)
    add_names(commands)
    _add_adopt(commands)
    add_token(commands)
    _add_convert(commands)
    _add_plan(commands)
    _add_top(commands)
    _add_schema(commands)
    _add_completion(commands)
    _add_help(commands)
    return parser


def _add_local(commands: Any) -> None:
    local = commands.add_parser(
        "local",
        help="serve models on this machine",
        description="Start the replicas of the services in FILE on this machine, and route requests to them.",
    )
    local.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="the services, or files of Azure ML; default: the shipped example",
    )
    add_name(local)
    local.add_argument(
        "--peer",
        dest="peers",
        action="append",
        default=[],
        type=address,
        metavar="HOST:PORT",
        help="join the router with this peer port: serve the same services and share their slots; may be repeated",
    )
    add_setting_flags(local)
    local.set_defaults(command="local", parser=local)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve the models of a Kubernetes cluster",
        description="Route requests to the models of the cluster of this pod, and scale them.",
    )
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the router (sections router, token_issuers)"
    )
    add_setting_flags(serve, in_cluster=True)
    serve.set_defaults(command="serve", parser=serve)


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="validate settings",
        description="Validate FILE, or the settings in a cluster, and print a summary. Nothing is started or changed. "
        "Addresses in FILE that do not respond are listed on standard error, but are no error.",
    )
    check.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="the services, or the settings of `serve`, or files of Azure ML",
    )
    add_name(check)
    add_cluster_flags(check)
    add_router(check)
    add_output(check)
    check.set_defaults(command="check", parser=check)


def _add_config(commands: Any) -> None:
    config = commands.add_parser(
        "config", help="show settings in effect", description="Show the settings in effect of a running router."
    )
    actions = config.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser(
        "show",
        help="show the settings in effect and their sources",
        description="Print the settings of a running router that are no defaults, and where each value comes from: a "
        "flag, the environment, the dynamic configuration or a file. URL is that of its status page, by default on "
        "this machine.",
    )
    show.add_argument("url", nargs="?", type=url, metavar="URL", help="for example http://127.0.0.1:9090")
    show.add_argument("--service", metavar="SERVICE", help="also the settings of this service and of its versions")
    show.add_argument("--all", action="store_true", help="also the settings with their default values")
    add_output(show)
    show.set_defaults(command="config show", parser=show)


def _add_adopt(commands: Any) -> None:
    adopt = commands.add_parser(
        "adopt",
        help="adopt services that Azure ML has deployed in a cluster",
        description="List the services that Azure ML has deployed in a cluster, with what each needs. With NAME, adopt "
        "these: the router observes them, and serves tests with their clients' keys and traffic split. --take-over "
        "puts the router in charge, and --undo restores what was there before. The plan is printed and checked by the "
        "API server before anything is changed.",
    )
    adopt.add_argument("names", nargs="*", metavar="NAME", help="a service: NAME, or NAMESPACE/NAME")
    adopt.add_argument("--take-over", action="store_true", help="serve and scale the services from now on")
    adopt.add_argument("--force", action="store_true", help="take over even while Azure ML's router runs")
    adopt.add_argument("--undo", action="store_true", help="restore what was there before the adoption")
    adopt.add_argument("--dry-run", action="store_true", help="print the plan, and change nothing")
    adopt.add_argument(
        "--keys-from",
        metavar="FILE",
        help="the clients' keys, in a form that `keys import` reads; - is standard input",
    )
    adopt.add_argument("--keys-secret", metavar="NAME", help="a Secret in the namespace of the service has the keys")
    adopt.add_argument(
        "--new-keys", action="store_true", help="generate new keys; clients need them before --take-over"
    )
    adopt.add_argument(
        "--from",
        dest="files",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="settings and traffic of the services, as in the files of Azure ML that `convert` reads; may be repeated",
    )
    adopt.add_argument(
        "--traffic", metavar="VERSION=PERCENT,...", help="the traffic split, which Deployments of Azure ML do not show"
    )
    adopt.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="[VERSION:]SETTING=VALUE",
        help="a setting of the service or of one version; may be repeated",
    )
    add_cluster_flags(adopt)
    add_router(adopt)
    add_output(adopt)
    adopt.set_defaults(command="adopt", parser=adopt)


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert deployment files of Azure ML",
        description="Convert FILEs of Azure ML to a file of `azureml-fe local`, or to objects of Kubernetes: "
        "deploymentconfig.json with inferenceconfig.json (v1), or endpoint.yml with its deployment.yml files (v2). "
        "What has no counterpart is listed on standard error, with the reason. Exit code: 0 if all was converted, 1 if "
        "not, 2 if a FILE cannot be used. Keys and environment variables are only in the written file, which only you "
        "can read.",
    )
    convert.add_argument("files", nargs="+", type=Path, metavar="FILE")
    convert.add_argument("--to", dest="target", choices=("local", "kubernetes"), required=True, help="the target")
    convert.add_argument(
        "--out", type=Path, metavar="PATH", help="the file to write; default: services.yaml or manifests.yaml"
    )
    convert.add_argument("--force", action="store_true", help="replace an existing file")
    add_name(convert)
    convert.add_argument(
        "--image",
        metavar="IMAGE",
        help="for --to kubernetes: the image of the model server, with the packages of the entry script; it listens on "
        "port 5001 and runs the script that AZUREML_ENTRY_SCRIPT names",
    )
    convert.add_argument("--accept-losses", action="store_true", help="exit with 0 although keys were not converted")
    add_output(convert)
    convert.set_defaults(command="convert", parser=convert)


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="compute how many replicas a load needs",
        description="Compute how many replicas a load needs, with Azure ML's published formula, how many requests must "
        "wait, with queueing theory, and which size of the router is needed.",
    )
    plan.add_argument("--rps", type=positive, required=True, metavar="R", help="requests per second")
    plan.add_argument("--seconds", type=positive, required=True, metavar="T", help="duration of one request")
    plan.add_argument("--target", type=percent, default=70.0, metavar="PERCENT", help="target utilization; default: 70")
    plan.add_argument(
        "--max-concurrent",
        type=count,
        default=1,
        metavar="N",
        help="requests that one replica handles at a time; default: 1",
    )
    plan.add_argument(
        "--wait", type=positive, default=500.0, metavar="MS", help="maximum wait for a replica; default: 500"
    )
    plan.add_argument(
        "--refused", type=percent, default=1.0, metavar="PERCENT", help="requests that may be refused; default: 1"
    )
    plan.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        default=argparse.SUPPRESS,  # that of --output
        help="the same as --output json",
    )
    add_output(plan)
    plan.set_defaults(command="plan", parser=plan)


def _add_top(commands: Any) -> None:
    top = commands.add_parser(
        "top",
        help="show a live view in the terminal",
        description="Show the live status of a router. URL is that of its status page, by default on this machine. "
        "With --cluster, show the leader of the routers in a cluster, through the API server. This needs the "
        "permission to get pods/proxy.",
    )
    top.add_argument("url", nargs="?", type=url, metavar="URL", help="for example http://127.0.0.1:9090")
    add_cluster_flags(top)
    add_router_name(top)
    top.add_argument("--once", action="store_true", help="print the status once and exit")
    add_output(top)
    top.set_defaults(command="top", parser=top)


def _add_schema(commands: Any) -> None:
    schema = commands.add_parser(
        "schema",
        help="print a JSON schema of the local file",
        description="Print a JSON schema of the file of `azureml-fe local`, for editors that complete and check YAML.",
    )
    schema.set_defaults(command="schema", parser=schema)


def _add_completion(commands: Any) -> None:
    completion = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description="Print a completion script. For bash: azureml-fe completion bash > "
        "~/.local/share/bash-completion/completions/azureml-fe",
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    completion.set_defaults(command="completion", parser=completion)


def _add_help(commands: Any) -> None:
    parser = commands.add_parser("help", help="show the help of a command", description="Show the help of COMMAND.")
    parser.add_argument("topic", nargs="*", metavar="COMMAND", help="for example: keys show")
    parser.set_defaults(command="help", parser=parser)
