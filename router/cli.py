"""The command `azureml-fe`: its syntax, its exit codes and how errors are shown.

Lives here: one small handler for each command, which calls the part that does the work. Must not live here: that work.
Parts are imported by the handler that needs them, so that `check` and `--help` load no event loop.

Exit codes: 0 done, 1 failed while running, 2 bad usage or settings. An error is one line on standard error.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from router import __version__
from router.cluster.local.file import Launch, LocalConfig, load_local
from router.cluster.local.keys import KeyStore
from router.cluster.local.token_keys import TokenKeyFile
from router.services import Service, Version
from router.settings import ROUTER_SETTINGS, flag_name, load_settings, parse_router_values
from router.values import Kind, SettingsError

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_METAVARS = {Kind.INT: "N", Kind.RATE: "on|off|RATE"}

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
        _complain(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:  # before, or without, a part that has its own way to end
        return EXIT_FAILED


def _complain(message: str) -> None:
    print("azureml-fe:", " ".join(message.split()), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="azureml-fe", description="An inference router in front of deployed models.")
    parser.add_argument("--version", action="version", version=f"azureml-fe {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

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
        type=_address,
        metavar="HOST:PORT",
        help="join the router whose peer port this is: serve what it serves, and route as one; may be repeated",
    )
    _add_shared_flags(local)
    local.set_defaults(handler=_local)

    check = commands.add_parser(
        "check", help="validate settings", description="Validate FILE and say what it sets up; nothing is started."
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the services")
    check.set_defaults(handler=_check)

    keys = commands.add_parser(
        "keys", help="show and renew keys", description="Keys that `azureml-fe local` has generated for a service."
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="show a service's keys", description="Print the keys of SERVICE.")
    show.add_argument("--key", choices=("primary", "secondary"), help="only this one, and nothing else")
    show.set_defaults(handler=_show_keys)
    regenerate = actions.add_parser(
        "regenerate",
        help="make one of a service's keys anew",
        description="Replace one key of SERVICE and print the new one. The other stays valid for clients to move to.",
    )
    regenerate.add_argument("--key", choices=("primary", "secondary"), required=True, help="which one")
    regenerate.set_defaults(handler=_regenerate_key)
    token = commands.add_parser(
        "token",
        help="make a token",
        description="Print a token for SERVICE, signed with the keys of `azureml-fe local`, as JSON: accessToken, "
        "refreshAfter and expiryOn (seconds since 1970), tokenType.",
    )
    token.add_argument("--ttl", metavar="SECONDS", help="how long it is valid; default: token_lifetime_seconds")
    token.add_argument("--bare", action="store_true", help="only the token itself")
    token.set_defaults(handler=_token)
    for action in (show, regenerate, token):
        action.add_argument("service", metavar="SERVICE")
        action.add_argument("--state-dir", default=argparse.SUPPRESS, help="where `azureml-fe local` keeps its state")
    _add_plan(commands)
    _add_top(commands)
    return parser


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="how many replicas a load needs",
        description="How many replicas, and how large a router, a load needs: Azure ML's published formula, and what "
        "queueing theory says of the waits.",
    )
    plan.add_argument("--rps", type=_positive, required=True, metavar="R", help="requests per second")
    plan.add_argument("--seconds", type=_positive, required=True, metavar="T", help="time that one request takes")
    plan.add_argument(
        "--target", type=_percent, default=70.0, metavar="PERCENT", help="utilization to aim at; default: 70"
    )
    plan.add_argument(
        "--max-concurrent", type=_count, default=1, metavar="N", help="requests that one replica handles at a time"
    )
    plan.add_argument(
        "--wait", type=_positive, default=500.0, metavar="MS", help="longest wait for a replica; default: 500"
    )
    plan.add_argument(
        "--refused", type=_percent, default=1.0, metavar="PERCENT", help="requests that may be refused; default: 1"
    )
    plan.add_argument("--json", action="store_true", help="as one line of JSON")
    plan.set_defaults(handler=_plan)


def _add_top(commands: Any) -> None:
    top = commands.add_parser(
        "top",
        help="live view in the terminal",
        description="Show what a router does, live. URL is its admin port's; by default that of this machine.",
    )
    top.add_argument("url", nargs="?", type=_url, metavar="URL", help="such as http://127.0.0.1:9090")
    top.add_argument("--once", action="store_true", help="print it once and end")
    top.set_defaults(handler=_top)


def _add_shared_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("settings of the router", "Each overrides the environment and FILE.")
    for setting in ROUTER_SETTINGS:
        if setting.flag:
            default = setting.default_means.replace("`", "") or setting.default
            flags.add_argument(
                flag_name(setting.name),
                dest=setting.name,
                metavar=_METAVARS.get(setting.kind, setting.name.rpartition("_")[2].upper()),
                default=argparse.SUPPRESS,
                help=f"{setting.about} Allowed: {setting.range_text}; default: {default}".replace("%", "%%"),
            )


def _local(arguments: argparse.Namespace) -> int:
    given = {setting.name: getattr(arguments, setting.name) for setting in ROUTER_SETTINGS if setting.name in arguments}
    flags = parse_router_values(given, lambda name: f"flag {flag_name(name)}")

    from router.local import run_local

    if arguments.peers and arguments.file is not None:
        raise SettingsError("FILE", str(arguments.file), "not allowed with --peer: the peers tell what is served")
    return run_local(arguments.file, flags, arguments.peers)


def _check(arguments: argparse.Namespace) -> int:
    for line in _summary(load_local(arguments.file)):
        print(line)
    return EXIT_DONE


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _number(text: str, allowed: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {allowed}")
    return value


def _positive(text: str) -> float:
    return _number(text, "a number above 0, at most 1000000", 0, 1e6)


def _percent(text: str) -> float:
    return _number(text, "a percentage above 0, at most 100", 0, 100)


def _count(text: str) -> int:
    value = _number(text, "a whole number from 1 to 100000", 0, 1e5)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a whole number from 1 to 100000")
    return int(value)


def _url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", url):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; allowed: http://HOST:PORT")
    return url


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
    from router.top import from_url, run_top

    if arguments.url is None:
        settings = load_settings(environ=os.environ)
        arguments.url = f"http://{settings.admin_host}:{settings.admin_port}"
    return run_top(from_url(arguments.url), sys.stdout, once=arguments.once)


def _show_keys(arguments: argparse.Namespace) -> int:
    keys = _key_store(arguments).existing(arguments.service)
    if arguments.key is not None:
        print(keys[arguments.key])
    else:
        for name, key in keys.items():
            print(f"{name}: {key}")
    return EXIT_DONE


def _regenerate_key(arguments: argparse.Namespace) -> int:
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

    from router.tokens.issuing import issue_token  # loads cryptography

    document = issue_token(
        TokenKeyFile(settings.state_dir),
        arguments.service,
        arguments.ttl,
        default_lifetime_seconds=settings.token_lifetime_seconds,
    )
    print(document["accessToken"] if arguments.bare else json.dumps(document))
    return EXIT_DONE


def _summary(config: LocalConfig) -> list[str]:
    """What a local file sets up, in a few lines for people; no key or argument is shown."""
    lines = []
    for service in config.services.values():
        lines.append(f"service {service.name}: {_authentication(service, config)}")
        for version, share in service.shares():
            launch = config.launches[service.name, version.name]
            facts = (f"{share} % of traffic", _scaling(version, launch), _concurrency(version), _launching(launch))
            lines.append(f"  version {version.name}: {'; '.join(facts)}")
    return lines


def _authentication(service: Service, config: LocalConfig) -> str:
    if service.token_auth_enabled:
        own = ["the router"] if config.router.get("token_issuing", True) else []
        issuers = own + [issuer.issuer for issuer in config.token_issuers.values() if issuer.serves(service.name)]
        return "tokens of " + (", ".join(issuers) or "nobody")
    if not service.auth_enabled:
        return "no authentication"
    keys = (("primary", service.primary_key), ("secondary", service.secondary_key))
    return "keys (" + ", ".join(f"{name} {'given' if key else 'generated'}" for name, key in keys) + ")"


def _scaling(version: Version, launch: Launch) -> str:
    if launch.addresses:
        return f"{len(launch.addresses)} replicas, not scaled"
    if not version.autoscale_enabled:
        return f"{version.num_replicas} replicas, fixed"
    least, most = version.autoscale_min_replicas, version.autoscale_max_replicas
    return f"{least} to {most} replicas at {version.autoscale_target_utilization} % utilization"


def _concurrency(version: Version) -> str:
    limit = version.replica_max_concurrent_requests
    if not limit:
        return "any number of requests at a time each"
    return f"at most {limit} request{'s' if limit > 1 else ''} at a time each"


def _launching(launch: Launch) -> str:
    if launch.entry_script:
        return f"entry script {launch.entry_script}"
    if launch.command:
        return f"command {launch.command[0]}"
    return "at " + ", ".join(f"{host}:{port}" for host, port in launch.addresses)
