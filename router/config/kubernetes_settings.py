"""Settings about the Kubernetes cluster that the router runs in."""

from dataclasses import dataclass

from router.config.declaration import file_setting, setting

_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
ROUTER_NAME = "azureml-fe"
"""The default of `router_name`."""
RELEASE_CLAIM_NAME = f"{ROUTER_NAME}-release"
"""The Lease in each namespace with models that names the release which serves them. All releases use this name."""
MODES = ("normal", "observe")
"""The values of `mode`, of the router and of a service."""


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """The namespaces that the router serves, its own pod, and its access to the API server."""

    namespaces: tuple[str, ...] = setting(
        "Namespaces of the models that are served, in Kubernetes.",
        default=(),
        default_text="all",
        pattern=_DNS_LABEL,
        pattern_text="names of namespaces",
    )
    router_name: str = setting(
        "Name of the router's Deployment and Lease in Kubernetes, and value of the label `azuremlappname` of its "
        "pods. The names of its other objects begin with it.",
        default=ROUTER_NAME,
        pattern=rf"(?!{RELEASE_CLAIM_NAME}$)[a-z](?:[-a-z0-9]{{0,51}}[a-z0-9])?",  # its Lease must be another one
        pattern_text=f"a name of up to 53 of a-z, 0-9 and -, which begins with a letter, but not {RELEASE_CLAIM_NAME}",
    )
    mode: str = setting(
        "`normal`, or `observe`: follow the models and report what the router would do, but neither serve nor scale "
        "them, in Kubernetes. The annotation `azureml-fe/mode` overrides it for one service.",
        default="normal",
        choices=MODES,
    )
    service_names: str = setting(
        "Names of services in Kubernetes. With `name` it is the label azuremlappname of a Deployment, which only one "
        "namespace can use. `namespace/name` adds the namespace, so that namespaces cannot conflict. Addresses "
        "(`/api/v1/service/namespace/name/score`), metrics, logs and tokens have this name.",
        default="name",
        choices=("name", "namespace/name"),
    )
    pod_name: str | None = setting(
        "Name of the router's own pod, in Kubernetes.",
        default_text="the host name",
        pattern=r"[a-z0-9](?:[-.a-z0-9]{0,61}[a-z0-9])?",
        pattern_text="the name of a pod",
    )
    pod_namespace: str | None = setting(
        "Namespace of the router's own pod, in Kubernetes.",
        default_text="that of its service account, or of the kubeconfig",
        pattern=_DNS_LABEL,
        pattern_text="the name of a namespace",
    )
    pod_ip: str | None = setting(
        "Address at which other router pods reach this one, in Kubernetes.",
        default_text="any address of this machine",
        pattern=r"[^\s/]{1,255}",
        pattern_text="an address",
    )
    peer_secret_file: str = file_setting(
        "File with the secret that the router pods share, in Kubernetes.", default="/etc/azureml-fe/peers/secret"
    )
    kubeconfig: str | None = file_setting(
        "File with the API server's address and credentials.",
        default_text="the service account of the pod",
        flag=True,
    )
    generate_keys: bool = setting(
        "Create the Secret with keys of a service in Kubernetes if it is missing.", default=True
    )
    contested_scaling_pause_seconds: float = setting(
        "Time for which the router does not scale a Deployment after another controller has repeatedly undone its "
        "changes. With 0 the router always scales it.",
        unit="s",
        default=300.0,
    )

    @property
    def observes(self) -> bool:
        """True if the router neither serves nor scales models, except those whose annotation says so."""
        return self.mode == "observe"

    @property
    def names_have_namespace(self) -> bool:
        """True if the name of a service is `namespace/name`."""
        return self.service_names == "namespace/name"
