"""The table of the router's settings about the Kubernetes cluster that it is in. Facts only; see `settings`."""

from typing import Any

from router.values import Kind, Scope, Setting, settings_of

_DNS = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_FILE: dict[str, Any] = {"pattern": r"[^\x00]+", "pattern_means": "a path"}

_router = settings_of(Scope.ROUTER)

POD_DEFAULTS = {"host": "0.0.0.0", "admin_host": "0.0.0.0", "state_dir": "/var/lib/azureml-fe"}
"""Where a pod, which is what `serve` runs in, differs from `local`."""

CLUSTER_SETTINGS: tuple[Setting, ...] = (
    _router(
        "namespaces",
        Kind.LIST,
        "Namespaces whose models are served, in Kubernetes.",
        default=(),
        default_means="all",
        pattern=_DNS,
        pattern_means="names of namespaces",
    ),
    _router(
        "pod_name",
        Kind.TEXT,
        "Name of the router's own pod, in Kubernetes.",
        default_means="the host's name",
        pattern=r"[a-z0-9](?:[-.a-z0-9]{0,61}[a-z0-9])?",
        pattern_means="the name of a pod",
    ),
    _router(
        "pod_namespace",
        Kind.TEXT,
        "Namespace of the router's own pod, in Kubernetes.",
        default_means="that of its service account, or of the kubeconfig",
        pattern=_DNS,
        pattern_means="the name of a namespace",
    ),
    _router(
        "pod_ip",
        Kind.TEXT,
        "Address at which other router pods reach this one, in Kubernetes.",
        default_means="any of this machine",
        pattern=r"[^\s/]{1,255}",
        pattern_means="an address",
    ),
    _router(
        "peer_secret_file",
        Kind.TEXT,
        "File with the secret that the router pods share, in Kubernetes.",
        default="/etc/azureml-fe/peers/secret",
        **_FILE,
    ),
    _router(
        "kubeconfig",
        Kind.TEXT,
        "File that says where the API server is and how to log in.",
        default_means="the service account of the pod",
        flag=True,
        **_FILE,
    ),
    _router(
        "generate_keys",
        Kind.BOOL,
        "The router makes keys for services in Kubernetes whose Secret is missing.",
        default=True,
    ),
    _router(
        "contested_scaling_pause_seconds",
        Kind.FLOAT,
        "For so long the router leaves a Deployment's number of replicas alone that somebody else keeps writing; with "
        "0 it goes on writing its own.",
        unit="s",
        default=300.0,
    ),
)
