"""The handlers of the commands about keys, tokens and names of services: `keys`, `token`, `names`.

Does not contain: their syntax (`key_syntax`), and their work, which is in `auth` and in the cluster back ends.
"""

import argparse
import json
import os
import stat
import sys
from collections.abc import Mapping
from typing import Any

from router.auth.exported_keys import KEY_FIELDS, MAX_BYTES, parse_exported_keys
from router.cli.flags import UsageError
from router.cli.handlers import EXIT_DONE, cluster_arguments, print_error, require_cluster, uses_cluster
from router.cluster.local.key_store import KeyStore
from router.cluster.local.key_warnings import key_warnings
from router.cluster.local.known_services import KnownServices
from router.cluster.local.token_key_file import TokenKeyFile
from router.config.router import load_settings
from router.config.schema import ArgumentError, UnknownServiceError
from router.config.service import is_service_name


def show_keys(arguments: argparse.Namespace) -> int:
    """Run `keys show`."""
    keys: Mapping[Any, str]
    if uses_cluster(arguments):
        from router.cluster.kubernetes.commands import show_keys as show_keys_in_cluster

        keys = show_keys_in_cluster(arguments.service, cluster_arguments(arguments))
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


def import_keys(arguments: argparse.Namespace) -> int:
    """Run `keys import`."""
    service = arguments.service
    if not is_service_name(service):
        raise ArgumentError("SERVICE", service, "must be the name of a service: NAME, or NAMESPACE/NAME")
    if arguments.file == "-" and sys.stdin.isatty():
        raise UsageError("FILE is missing (see azureml-fe keys import --help)")
    content, where = read_keys(arguments.file)
    keys = parse_exported_keys(content, service, where)
    for line in key_warnings({service: keys}):
        print_error(line)
    if uses_cluster(arguments):
        from router.cluster.kubernetes.key_import import import_keys as import_keys_in_cluster

        secret, changed, is_used = import_keys_in_cluster(
            service, keys, cluster_arguments(arguments), replace=arguments.replace
        )
        stored_in = f"Secret {secret}"
    else:
        store = _key_store(arguments)
        stored_in = str(store.path)
        changed = store.store(service, *keys, replace=arguments.replace)
        known = KnownServices(store.path.parent).names()
        is_used = not known or service in known
    if not is_used:
        print_error(f"there is no service {service} yet; it will have these keys")
    if arguments.output == "json":
        print(json.dumps({"service": service, "stored_in": stored_in, "changed": changed}))
    else:
        print(f"{service}: keys stored in {stored_in}" if changed else f"{service}: {stored_in} has these keys already")
    return EXIT_DONE


def read_keys(file: str) -> tuple[bytes, str]:
    """Return the content of a file or of standard input (`-`), and its name for errors. Warn if others can read it."""
    if file == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1), "standard input"
    with open(file, "rb") as opened:  # may be a pipe, as of <(az ml ...)
        status = os.fstat(opened.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            print_error(f"{file} is readable by other users (mode {mode}); remove it when the keys are imported")
        return opened.read(MAX_BYTES + 1), file


def regenerate_key(arguments: argparse.Namespace) -> int:
    """Run `keys regenerate`."""
    if uses_cluster(arguments):
        from router.cluster.kubernetes.commands import regenerate_key as regenerate_key_in_cluster

        key = regenerate_key_in_cluster(arguments.service, arguments.key, cluster_arguments(arguments))
    else:
        store = _key_store(arguments)
        store.stored_keys(arguments.service)  # raises for an unknown service; otherwise it would get keys
        key = store.regenerate(arguments.service, arguments.key)
    document = {"service": arguments.service, arguments.key: key}
    print(json.dumps(document) if arguments.output == "json" else key)
    return EXIT_DONE


def prune_keys(arguments: argparse.Namespace) -> int:
    """Run `keys prune`."""
    require_cluster(arguments)

    from router.cluster.kubernetes.commands import prune_keys as prune_keys_in_cluster

    pruned = prune_keys_in_cluster(arguments.namespaces, arguments.kubeconfig, delete=arguments.delete)
    if arguments.output == "json":
        secrets = [{"namespace": namespace, "name": name} for namespace, name in pruned]
        print(json.dumps({"secrets": secrets, "deleted": arguments.delete}))
        return EXIT_DONE
    for namespace, name in pruned:
        print(f"{namespace}/{name}" + (" deleted" if arguments.delete else ""))
    return EXIT_DONE


def _key_store(arguments: argparse.Namespace) -> KeyStore:
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    return KeyStore(load_settings(environ=os.environ, flags=flags).state_dir, warn=print_error)


def create_token(arguments: argparse.Namespace) -> int:
    """Run `token`."""
    flags = {"state_dir": arguments.state_dir} if "state_dir" in arguments else {}
    settings = load_settings(environ=os.environ, flags=flags)
    lifetime = settings.token_lifetime_seconds
    service, ttl = arguments.service, arguments.ttl
    if uses_cluster(arguments):
        from router.cluster.kubernetes.commands import issue_cluster_token

        document = issue_cluster_token(service, ttl, cluster_arguments(arguments), default_lifetime_seconds=lifetime)
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


def list_names(arguments: argparse.Namespace) -> int:
    """Run `names list`."""
    require_cluster(arguments)

    from router.cluster.kubernetes.name_commands import list_names as list_names_in_cluster

    names = list_names_in_cluster(cluster_arguments(arguments))
    if arguments.output == "json":
        print(json.dumps({"names": [each._asdict() for each in names]}))
        return EXIT_DONE
    for each in names:
        print(f"{each.name}: namespace {each.namespace} since {each.since}" + ("" if each.used else ", unused"))
    return EXIT_DONE


def release_name(arguments: argparse.Namespace) -> int:
    """Run `names release`."""
    require_cluster(arguments)

    from router.cluster.kubernetes.name_commands import release_name as release_name_in_cluster

    released = release_name_in_cluster(arguments.name, cluster_arguments(arguments), force=arguments.force)
    text = f"{released.name} no longer belongs to namespace {released.namespace}"
    print(json.dumps(released._asdict()) if arguments.output == "json" else text)
    return EXIT_DONE
