"""The command `azureml-fe`: one small handler per command, exit codes, and the output of errors.

Does not contain: the syntax (`syntax`), the handlers about keys (`key_commands`), and the work of a command. Each
handler imports the modules that do its work, so that `check` and `--help` load no event loop.

Exit codes: 0 success, 1 failure at run time, 2 invalid usage or settings. Each error is one line on standard
error. All faults of settings are reported, not only the first one.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from router.cli import key_commands
from router.cli.early_signals import restore_default_handlers
from router.cli.flags import UsageError
from router.cli.handlers import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_USAGE,
    cluster_arguments,
    print_error,
    uses_cluster,
)
from router.cli.syntax import make_parser, parse_arguments
from router.cluster.local.config_file import is_router_file, load_router_file
from router.cluster.local.service_files import ServiceFiles
from router.cluster.local.summary import router_file_summary
from router.config.router import (
    CONFIG_VARIABLE,
    ROUTER_SETTINGS,
    flag_name,
    load_settings,
    parse_router_values,
)
from router.config.schema import ArgumentError, SettingsError
from router.net.address import host_port, local_destination
from router.net.listen import ListenErrors

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    `argv` has the arguments without the program name; the default is those of the process. `--help` and `--version`
    raise SystemExit, as usual with argparse.
    """
    try:
        arguments = parse_arguments(argv)
        if arguments.command not in _STOPPED_BY_SIGNALS:
            restore_default_handlers()
        return HANDLERS[arguments.command](arguments)
    except SettingsError as error:
        for each in error.errors:
            print_error(str(each))
        return EXIT_USAGE
    except UsageError as error:
        print_error(str(error))
        return EXIT_USAGE
    except ListenErrors as error:
        for address_error in error.errors:
            print_error(str(address_error))
        return EXIT_FAILED
    except OSError as error:
        print_error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:  # the command does not handle SIGINT itself
        return EXIT_FAILED


def _flags(arguments: argparse.Namespace) -> dict[str, Any]:
    flags = {setting.name: getattr(arguments, setting.name) for setting in ROUTER_SETTINGS if setting.name in arguments}
    return parse_router_values(flags, lambda name: f"flag {flag_name(name)}")


def _serve(arguments: argparse.Namespace) -> int:
    flags = _flags(arguments)

    from router.cli.serve import run_serve

    return run_serve(arguments.config, flags)


def _local(arguments: argparse.Namespace) -> int:
    flags = _flags(arguments)

    from router.cli.local import run_local

    if arguments.peers and arguments.files:
        problem = "not allowed with --peer; the services are those of the peers"
        raise ArgumentError("FILE", str(arguments.files[0]), problem)
    if arguments.name is not None and not arguments.files:
        raise ArgumentError("--name", arguments.name, "allowed only for files of Azure ML")
    files = ServiceFiles(arguments.files, arguments.name) if arguments.files else None
    return run_local(files, flags, arguments.peers)


def _check(arguments: argparse.Namespace) -> int:
    if uses_cluster(arguments):
        return _check_cluster(arguments)
    if not arguments.files:
        raise UsageError("FILE or --cluster is missing (see azureml-fe check --help)")
    try:
        if len(arguments.files) == 1 and is_router_file(arguments.files[0]):
            from_file, issuers = load_router_file(arguments.files[0])
            load_settings(environ=os.environ, file=from_file)  # checks the rules between settings
            lines, warnings = router_file_summary(from_file, issuers), list[str]()
        else:
            from router.cli.check import check_local

            lines, warnings = check_local(ServiceFiles(arguments.files, arguments.name), os.environ)
    except SettingsError as error:
        if arguments.output == "text":
            raise
        print(json.dumps({"summary": [], "warnings": [], "errors": list(map(_error_document, error.errors))}))
        return EXIT_USAGE
    if arguments.output == "json":
        print(json.dumps({"summary": lines, "warnings": warnings, "errors": []}))
        return EXIT_DONE
    for line in lines:
        print(line)
    for line in warnings:
        print_error(line)
    return EXIT_DONE


def _error_document(error: SettingsError) -> dict[str, Any]:
    value = error.value if isinstance(error.value, str | int | float | bool | None) else str(error.value)
    return {"where": error.where, "setting": error.setting, "value": value, "problem": error.problem}


def _check_cluster(arguments: argparse.Namespace) -> int:
    if arguments.files:
        raise ArgumentError("FILE", str(arguments.files[0]), "not allowed with --cluster")

    from router.cluster.kubernetes.cluster_check import check_cluster

    path = os.environ.get(CONFIG_VARIABLE)
    from_file, _ = load_router_file(Path(path)) if path else ({}, {})
    settings = load_settings(environ=os.environ, file=from_file)
    lines, errors = check_cluster(
        arguments.namespaces or settings.namespaces,
        arguments.router_namespace or settings.pod_namespace, arguments.kubeconfig,
        router_name=arguments.router_name or settings.router_name,
        scales_itself=settings.self_scaling_enabled, observes=settings.observes,
        names_have_namespace=settings.names_have_namespace,
    )  # fmt: skip
    if arguments.output == "json":
        problems = [{"where": "", "setting": "", "value": None, "problem": line} for line in errors]
        print(json.dumps({"summary": lines, "warnings": [], "errors": problems}))
        return EXIT_USAGE if errors else EXIT_DONE
    for line in lines:
        print(line)
    for line in errors:
        print_error(line)
    return EXIT_USAGE if errors else EXIT_DONE


def _convert(arguments: argparse.Namespace) -> int:
    from router.cli.convert import run_convert

    report = run_convert(
        arguments.files,
        arguments.target,
        out=arguments.out,
        name=arguments.name,
        image=arguments.image,
        overwrite=arguments.force,
    )
    if arguments.output == "json":
        print(json.dumps(report.as_dict()))
    else:
        for line in report.lines():
            print(line)
        for loss in report.losses:
            print_error(f"not converted: {loss}")
    return EXIT_FAILED if report.losses and not arguments.accept_losses else EXIT_DONE


def _plan(arguments: argparse.Namespace) -> int:
    from router.cli.plan import plan

    try:
        result = plan(
            rps=arguments.rps,
            seconds=arguments.seconds,
            target_percent=arguments.target,
            max_concurrent=arguments.max_concurrent,
            wait_seconds=arguments.wait / 1000,
            accepted_refusals=arguments.refused / 100,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    for line in [json.dumps(result.as_dict())] if arguments.output == "json" else result.lines():
        print(line)
    return EXIT_DONE


def _top(arguments: argparse.Namespace) -> int:
    from router.cli.top import from_cluster, from_url, run_top

    as_json = arguments.output == "json"
    if uses_cluster(arguments):
        if arguments.url is not None:
            raise ArgumentError("URL", arguments.url, "not allowed with --cluster")

        from router.cluster.kubernetes.remote_status import open_cluster_status

        if len(arguments.namespaces) > 1:
            raise ArgumentError(
                "--namespace", arguments.namespaces[1], "must be a single namespace, that of the router"
            )
        namespace = arguments.namespaces[0] if arguments.namespaces else None
        settings = load_settings(environ=os.environ)
        router_name = arguments.router_name or settings.router_name
        with open_cluster_status(namespace, arguments.kubeconfig, router_name, settings.admin_port) as fetch_status:
            return run_top(from_cluster(fetch_status), sys.stdout, once=arguments.once, as_json=as_json)
    return run_top(from_url(arguments.url or _local_admin_url()), sys.stdout, once=arguments.once, as_json=as_json)


def _local_admin_url() -> str:
    settings = load_settings(environ=os.environ)
    return f"http://{host_port(local_destination(settings.admin_host), settings.admin_port)}"


def _show_config(arguments: argparse.Namespace) -> int:
    from router.cli.config_show import config_lines, read_config

    document = read_config(arguments.url or _local_admin_url(), arguments.service)
    if arguments.output == "json":
        print(json.dumps(document))
        return EXIT_DONE
    for line in config_lines(document, all_settings=arguments.all):
        print(line)
    return EXIT_DONE


def _adopt(arguments: argparse.Namespace) -> int:
    from router.cli.adopt import run_adopt

    run_adopt(arguments, cluster_arguments(arguments), key_commands.read_keys, partial(print, flush=True))
    return EXIT_DONE


def _schema(arguments: argparse.Namespace) -> int:
    from router.cluster.local.file_schema import local_file_schema

    print(json.dumps(local_file_schema(), indent=2))
    return EXIT_DONE


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    print(shtab.complete(make_parser(), arguments.shell))
    return EXIT_DONE


def _help(arguments: argparse.Namespace) -> int:
    return main([*arguments.topic, "--help"])


HANDLERS: dict[str, Handler] = {
    "local": _local,
    "serve": _serve,
    "check": _check,
    "config show": _show_config,
    "keys show": key_commands.show_keys,
    "keys import": key_commands.import_keys,
    "keys regenerate": key_commands.regenerate_key,
    "keys prune": key_commands.prune_keys,
    "names list": key_commands.list_names,
    "names release": key_commands.release_name,
    "adopt": _adopt,
    "token": key_commands.create_token,
    "convert": _convert,
    "plan": _plan,
    "top": _top,
    "schema": _schema,
    "completion": _completion,
    "help": _help,
}

_STOPPED_BY_SIGNALS = frozenset(("local", "serve"))
"""The commands with handlers of their own, which replace those of the start (`early_signals`)."""
