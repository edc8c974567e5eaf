"""The syntax of the command line: commands, arguments, help texts. `main` runs the commands."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from router import __version__
from router.cli.arguments import address, count, percent, positive, url
from router.config.declaration import declared_settings
from router.config.kubernetes_settings import ROUTER_NAME, KubernetesSettings
from router.config.router import ROUTER_SETTINGS, SERVE_DEFAULTS, flag_name
from router.config.schema import Setting, SettingKind
from router.telemetry.build_info import hot_path

_METAVARS = {SettingKind.INT: "N", SettingKind.FRACTION: "on|off|RATE"}

_CLUSTER_ONLY = frozenset(setting.name for setting in declared_settings(KubernetesSettings))
"""Settings that are flags of `serve` only."""

SHELLS = ("bash", "zsh", "tcsh")
"""The shells that `azureml-fe completion` supports."""


class UsageError(Exception):
    """An invalid command line. `str()` is one line."""


class _Parser(argparse.ArgumentParser):
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


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed arguments. The attribute `command` is one of the names in `main.HANDLERS`. Raises
    UsageError."""
    arguments, rest = make_parser().parse_known_args(argv)
    arguments.parser.check_no_rest(rest)
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(prog="azureml-fe", description="An inference router in front of deployed models.")
    parser.add_argument("-V", "--version", action="version", version=f"azureml-fe {__version__} ({hot_path()})")
    parser.set_defaults(command="help", topic=[], parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_local(commands)
    _add_serve(commands)
    _add_check(commands)
    _add_config(commands)
    _add_keys(commands)
    _add_names(commands)
    _add_adopt(commands)
    _add_token(commands)
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
    _add_name(local)
    local.add_argument(
        "--peer",
        dest="peers",
        action="append",
        default=[],
        type=address,
        metavar="HOST:PORT",
        help="join the router with this peer port: serve the same services and share their slots; may be repeated",
    )
    _add_shared_flags(local)
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
    _add_shared_flags(serve, in_cluster=True)
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
    _add_name(check)
    _add_cluster_flags(check)
    _add_router(check)
    _add_output(check)
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
    _add_output(show)
    show.set_defaults(command="config show", parser=show)


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser(
        "keys",
        help="show, import and replace keys",
        description="Show, import or replace the keys of a service of `azureml-fe local` or of a cluster.",
    )
    keys.set_defaults(topic=["keys"], parser=keys)
    actions = keys.add_subparsers(title="actions", metavar="ACTION")
    show = actions.add_parser("show", help="show a service's keys", description="Print the keys of SERVICE.")
    show.add_argument("--key", choices=("primary", "secondary"), help="print only this key")
    _add_service(show)
    _add_output(show, more=("sdk",), text="sdk: JSON as from az ml online-endpoint get-credentials")
    show.set_defaults(command="keys show", parser=show)
    _add_keys_import(actions)
    regenerate = actions.add_parser(
        "regenerate",
        help="replace one of a service's keys",
        description="Replace one key of SERVICE and print the new one. The other key stays valid, so that clients can "
        "switch to it before.",
    )
    regenerate.add_argument("--key", choices=("primary", "secondary"), required=True, help="the key to replace")
    _add_service(regenerate)
    _add_output(regenerate)
    regenerate.set_defaults(command="keys regenerate", parser=regenerate)
    prune = actions.add_parser(
        "prune",
        help="list or delete generated keys of deleted models in a cluster",
        description="List the Secrets with generated keys of services that have no Deployment. A model that is "
        "deployed again would get the same keys.",
    )
    prune.add_argument("--delete", action="store_true", help="delete these Secrets")
    _add_cluster_flags(prune)
    _add_output(prune)
    prune.set_defaults(command="keys prune", parser=prune)


def _add_keys_import(actions: Any) -> None:
    importing = actions.add_parser(
        "import",
        help="import the keys of a service of Azure ML",
        description="Store the keys that the clients of SERVICE have, so that they need no others. FILE has both keys "
        "in the form in which Azure ML's tools print them: service.get_keys() of the first SDK, az ml online-endpoint "
        "get-credentials, or azureml-fe keys show. In a cluster, the keys are in a Secret. Keys are never printed.",
    )
    _add_service(importing)
    importing.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: -, standard input")
    importing.add_argument(
        "--replace", action="store_true", help="replace other keys of SERVICE, which then are invalid at once"
    )
    _add_output(importing)
    importing.set_defaults(command="keys import", parser=importing)


def _add_names(commands: Any) -> None:
    names = commands.add_parser(
        "names",
        help="show and release names of services in a cluster",
        description="Show which namespace each name of a service belongs to, or release a name.",
    )
    actions = names.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser(
        "list",
        help="list the names",
        description="List the names, with their namespaces, since when they have them, and whether they use them.",
    )
    _add_cluster_flags(listing)
    _add_router(listing)
    _add_output(listing)
    listing.set_defaults(command="names list", parser=listing)
    release = actions.add_parser(
        "release",
        help="release a name",
        description="Release NAME, so that another namespace can use it. The router gives it to the oldest Deployment "
        "with this name. Clients that still use NAME send their requests to the new namespace then.",
    )
    release.add_argument("name", metavar="NAME")
    release.add_argument("--force", action="store_true", help="release it even if a Deployment uses it")
    _add_cluster_flags(release)
    _add_router(release)
    _add_output(release)
    release.set_defaults(command="names release", parser=release)


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
    _add_cluster_flags(adopt)
    _add_router(adopt)
    _add_output(adopt)
    adopt.set_defaults(command="adopt", parser=adopt)


def _add_token(commands: Any) -> None:
    token = commands.add_parser(
        "token",
        help="create a token",
        description="Print a token for SERVICE, signed with the key of `azureml-fe local` or of the router in a "
        "cluster, as JSON that Azure ML's SDKs read: accessToken, tokenType, and the times in seconds since 1970 as "
        "refreshAfter and expiryOn, and as refreshAfterTimeUtc and expiryTimeUtc.",
    )
    token.add_argument("--ttl", metavar="SECONDS", help="lifetime; default: token_lifetime_seconds")
    token.add_argument(
        "--bare",
        dest="output",
        action="store_const",
        const="text",
        default=argparse.SUPPRESS,  # that of --output
        help="print only the token itself, as --output text",
    )
    _add_service(token)
    _add_output(token, default="json")
    token.set_defaults(command="token", parser=token)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="SERVICE")
    parser.add_argument("--state-dir", default=argparse.SUPPRESS, help="the state directory of `azureml-fe local`")
    _add_cluster_flags(parser)
    _add_router(parser)


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
    _add_name(convert)
    convert.add_argument(
        "--image",
        metavar="IMAGE",
        help="for --to kubernetes: the image of the model server, with the packages of the entry script; it listens on "
        "port 5001 and runs the script that AZUREML_ENTRY_SCRIPT names",
    )
    convert.add_argument("--accept-losses", action="store_true", help="exit with 0 although keys were not converted")
    _add_output(convert)
    convert.set_defaults(command="convert", parser=convert)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        metavar="SERVICE",
        help="for files of Azure ML: the name of the service; default: the endpoint's, or for v1 that of the directory",
    )


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
    _add_output(plan)
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
    _add_cluster_flags(top)
    _add_router_name(top)
    top.add_argument("--once", action="store_true", help="print the status once and exit")
    _add_output(top)
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


def _add_output(
    parser: argparse.ArgumentParser, default: str = "text", *, more: Sequence[str] = (), text: str = ""
) -> None:
    """Add the flag for the format. `more` has further formats, and `text` their meaning."""
    help_text = f"format; default: {default}" + (f"; {text}" if text else "")
    parser.add_argument("--output", choices=("text", "json", *more), default=default, help=help_text)


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
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


def _add_router(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--router-namespace", metavar="NAME", help="the namespace of the cluster's router; default: that of this pod"
    )
    _add_router_name(parser)


def _add_router_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--router-name", metavar="NAME", help=f"the name of the cluster's Deployment of routers; default: {ROUTER_NAME}"
    )


def _add_shared_flags(parser: argparse.ArgumentParser, *, in_cluster: bool = False) -> None:
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
