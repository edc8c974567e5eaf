"""What the handlers of several commands have in common: exit codes, the output of errors, arguments about a cluster."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from router.cli.flags import UsageError
from router.config.router import load_settings

if TYPE_CHECKING:
    from router.cluster.kubernetes.commands import ClusterArguments

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


def print_error(message: str) -> None:
    """Print one line on standard error."""
    print("azureml-fe:", " ".join(message.split()), file=sys.stderr)


def uses_cluster(arguments: argparse.Namespace) -> bool:
    """True if the arguments select a cluster."""
    return bool(arguments.cluster or arguments.kubeconfig or arguments.namespaces)


def require_cluster(arguments: argparse.Namespace) -> None:
    """Raise UsageError unless the arguments select a cluster."""
    if not uses_cluster(arguments):
        raise UsageError(f"--cluster is missing (see azureml-fe {arguments.command} --help)")


def cluster_arguments(arguments: argparse.Namespace) -> "ClusterArguments":
    """Return what the arguments, the environment and the settings say about the cluster."""
    from router.cluster.kubernetes.commands import ClusterArguments

    settings = load_settings(environ=os.environ)
    return ClusterArguments(
        arguments.kubeconfig,
        arguments.namespaces,
        arguments.router_namespace or settings.pod_namespace,
        arguments.router_name or settings.router_name,
    )
