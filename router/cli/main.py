"""The command `azureml-fe`: one small handler per command, exit codes, and the output of errors.

Does not contain: the syntax (`syntax`), the work of a command. Each handler imports the modules that do its work, so
that `check` and `--help` load no event loop.

Exit codes: 0 success, 1 failure at run time, 2 invalid usage or settings. Each error is one line on standard
error. All faults of settings are reported, not only the first one.
"""

import argparse
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.auth.exported_keys import KEY_FIELDS, MAX_BYTES, parse_exported_keys
from router.cli.early_signals import restore_default_handlers
from router.cli.syntax import UsageError, make_parser, parse_arguments
from router.cluster.local.config_file import is_router_file, load_router_file
from router.cluster.local.key_store import KeyStore
from router.cluster.local.key_warnings import key_warnings
from router.cluster.local.known_services import KnownServices
from router.cluster.local.service_files import ServiceFiles
from router.cluster.local.summary import router_file_summary
from router.cluster.local.token_key_file import TokenKeyFile
from router.config.router import (
    CONFIG_VARIABLE,
    ROUTER_SETTINGS,
    flag_name,
    load_settings,
    parse_router_values,
)
from router.config.schema import ArgumentError, SettingsError, UnknownServiceError
from router.config.service import is_service_name
from router.net.address import host_port, local_destination
from router.net.listen import ListenErrors

if TYPE_CHECKING:
    from router.cluster.kubernetes.commands import ClusterArguments

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

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
            _print_error(str(each))
        return EXIT_USAGE
    except UsageError as error:
        _print_error(str(error))
        return EXIT_USAGE
    except ListenErrors as error:
        for address_error in error.errors:
            _print_error(str(address_error))
        return EXIT_FAILED
    except OSError as error:
        _print_error(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:  # the command does not handle SIGINT itself
        return EXIT_FAILED


def _print_error(message: str) -> None:
    print("azureml-fe:", " ".join(message.split()), file=sys.stderr)


def _uses_cluster(arguments: argparse.Namespace) -> bool:
    return bool(arguments.cluster or arguments.kubeconfig or arguments.namespaces)


def _require_cluster(arguments: argparse.Namespace) -> None:
    if not _uses_cluster(arguments):
        raise UsageError(f"--cluster is missing (see azureml-fe {arguments.command} --help)")


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
    if _uses_cluster(arguments):
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
        _print_error(line)
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
        _print_error(line)
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
            _print_error(f"not converted: {loss}")
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
    if _uses_cluster(arguments):
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


def _show_keys(arguments: argparse.Namespace) -> int:
    keys: Mapping[Any, str]
    if _uses_cluster(arguments):
        from router.cluster.kubernetes.commands import show_keys

        keys = show_keys(arguments.service, _cluster_arguments(arguments))
    else:
        keys = _key_store(arguments).stored_keys(arguments.service)
    if arguments.key is not None and arguments.key not in keys:
        raise ArgumentError("--key", arguments.key, f"service {arguments.service} has no such key")
    shown = {name: key for name, key in keys.items() if arguments.key in (None, name)}
    if arguments.output == "sdk":
        print(json.dumps({KEY_FIELDS[name]: key for name, key in shown.items()}))
    elif arguments.output == "json":
        print(json.dumps({"service": arguments.service, **shown}))
    elif arguments.key is not None:
        print(keys[arguments.key])
    else:
        for name, key in keys.items():
            print(f"{name}: {key}")
    return EXIT_DONE


def _import_keys(arguments: argparse.Namespace) -> int:
    service = arguments.service
    if not is_service_name(service):
        raise ArgumentError("SERVICE", service, "must be the name of a service: NAME, or NAMESPACE/NAME")
    if arguments.file == "-" and sys.stdin.isatty():
        raise UsageError("FILE is missing (see azureml-fe keys import --help)")
    content, where = _read_keys(arguments.file)
    keys = parse_exported_keys(content, service, where)
    for line in key_warnings({service: keys}):
        _print_error(line)
    if _uses_cluster(arguments):
        from router.cluster.kubernetes.key_import import import_keys

        secret, changed, is_used = import_keys(service, keys, _cluster_arguments(arguments), replace=arguments.replace)
        stored_in = f"Secret {secret}"
    else:
        store = _key_store(arguments)
        stored_in = str(store.path)
        changed = store.store(service, *keys, replace=arguments.replace)
        known = KnownServices(store.path.parent).names()
        is_used = not known or service in known
    if not is_used:
        _print_error(f"there is no service {service} yet; it will have these keys")
    if arguments.output == "json":
        print(json.dumps({"service": service, "stored_in": stored_in, "changed": changed}))
    else:
        print(f"{service}: keys stored in {stored_in}" if changed else f"{service}: {stored_in} has these keys already")
    return EXIT_DONE


def _read_keys(file: str) -> tuple[bytes, str]:
    """Return the content of a file or of standard input (`-`), and its name for errors. Warn if others can read it."""
    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1), "standard input"
    with open(file, "rb") as opened:  # may be a pipe, as of <(az ml ...)
        status = os.fstat(opened.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            _print_error(f"{file} is readable by other users (mode {mode}); remove it when the keys are imported")
        return opened.read(MAX_BYTES + 1), file


def _prune_keys(arguments: argparse.Namespace) -> int:
    _require_cluster(arguments)

    from router.cluster.kubernetes.commands import prune_keys

    pruned = prune_keys(arguments.namespaces, arguments.kubeconfig, delete=arguments.delete)
    if arguments.output == "json":
        secrets = [{"namespace": namespace, "name": name} for namespace, name in pruned]
        print(json.dumps({"secrets": secrets, "deleted": arguments.delete}))
        return EXIT_DONE
    for namespace, name in pruned:
        print(f"{namespace}/{name}" + (" deleted" if arguments.delete else ""))
    return EXIT_DONE


def _cluster_arguments(arguments: argparse.Namespace) -> "ClusterArguments":
    from router.cluster.kubernetes.commands import ClusterArguments

    settings = load_settings(environ=os.environ)
    return ClusterArguments(
        arguments.kubeconfig,
        arguments.namespaces,
        arguments.router_namespace or settings.pod_namespace,
        arguments.router_name or settings.router_name,
    )


def _list_names(arguments: argparse.Namespace) -> int:
    _require_cluster(arguments)

    from router.cluster.kubernetes.name_commands import list_names

    names = list_names(_cluster_arguments(arguments))
    if arguments.output == "json":
        print(json.dumps({"names": [each._asdict() for each in names]}))
        return EXIT_DONE
    for each in names:
        print(f"{each.name}: namespace {each.namespace} since {each.since}" + ("" if each.used else ", unused"))
    return EXIT_DONE


def _release_name(arguments: argparse.Namespace) -> int:
    _require_cluster(arguments)

    from router.cluster.kubernetes.name_commands import release_name

    released = release_name(arguments.name, _cluster_arguments(arguments), force=arguments.force)
    text = f"{released.name} no longer belongs to namespace {released.namespace}"
    print(json.dumps(released._asdict()) if arguments.output == "json" else text)
    return EXIT_DONE


def _adopt(arguments: argparse.Namespace) -> int:
    from router.cli.adopt import run_adopt

    run_adopt(arguments, _cluster_arguments(arguments), _read_keys, partial(print, flush=True))
    return EXIT_DONE


def _regenerate_key(arguments: argparse.Namespace) -> int:
    if _uses_cluster(arguments):
        from router.cluster.kubernetes.commands import regenerate_key

        key = regenerate_key(arguments.service, arguments.key, _cluster_arguments(arguments))
    else:
        store = _key_store(arguments)
        store.stored_keys(arguments.service)  # raises for an unknown service; otherwise it would get keys
        key = store.regenerate(arguments.service, arguments.key)
    document = {"service": arguments.service, arguments.key: key}
    print(json.dumps(document) if arguments.output == "json" else key)
    return EXIT_DONE


def _key_store(arguments: argparse.Namespace) -> KeyStore:
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    return KeyStore(load_settings(environ=os.environ, flags=flags).state_dir, warn=_print_error)


def _token(arguments: argparse.Namespace) -> int:
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    settings = load_settings(environ=os.environ, flags=flags)
    lifetime = settings.token_lifetime_seconds
    service, ttl = arguments.service, arguments.ttl
    if _uses_cluster(arguments):
        from router.cluster.kubernetes.commands import issue_cluster_token

        document = issue_cluster_token(service, ttl, _cluster_arguments(arguments), default_lifetime_seconds=lifetime)
    else:
        import asyncio

        from router.auth.issuing.token_issuer import issue_token

        known = KnownServices(settings.state_dir).names()
        if known and service not in known:
            raise UnknownServiceError(service, known, "services", str(settings.state_dir))
        store = TokenKeyFile(settings.state_dir)
        document = asyncio.run(issue_token(store, service, ttl, default_lifetime_seconds=lifetime))
    print(json.dumps(document) if arguments.output == "json" else document["accessToken"])
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
    "keys show": _show_keys,
    "keys import": _import_keys,
    "keys regenerate": _regenerate_key,
    "keys prune": _prune_keys,
    "names list": _list_names,
    "names release": _release_name,
    "adopt": _adopt,
    "token": _token,
    "convert": _convert,
    "plan": _plan,
    "top": _top,
    "schema": _schema,
    "completion": _completion,
    "help": _help,
}

_STOPPED_BY_SIGNALS = frozenset(("local", "serve"))
"""The commands with handlers of their own, which replace those of the start (`early_signals`)."""
