"""How the router authenticates to an API server: with its pod's service account and with a kubeconfig."""

import contextlib
import datetime
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from router.cluster.kubernetes.client import ApiClient, ApiError, JsonObject
from router.cluster.kubernetes.credentials import Credentials, ServiceAccount, default_kubeconfig, load_credentials
from router.config.schema import SettingsError
from tests.kube_standin.client import path_of
from tests.kube_standin.cluster import Cluster

MAY_LIST_PODS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]


@pytest.fixture
def account_directory(cluster: Cluster, tmp_path: Path) -> Path:
    """The directory that the kubelet mounts into a pod whose service account may list pods."""
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    cluster.create_service_account("router")
    cluster.grant("router", MAY_LIST_PODS)
    (directory / "token").write_text(cluster.create_token("router") + "\n")
    (directory / "ca.crt").write_bytes(cluster.access.authority)
    (directory / "namespace").write_text(cluster.namespace)
    return directory


def pod_environment(cluster: Cluster) -> dict[str, str]:
    """The variables with which the kubelet points pods to the API server."""
    address = urlsplit(cluster.access.url)
    return {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port or 443)}


@contextlib.asynccontextmanager
async def client_with(credentials: Credentials) -> AsyncIterator[ApiClient]:
    api = ApiClient(credentials)
    try:
        yield api
    finally:
        await api.close()


async def list_pods(api: ApiClient, cluster: Cluster) -> list[JsonObject]:
    items: list[JsonObject] = (await api.request("GET", path_of("pods", cluster.namespace)))["items"]
    return items


async def test_service_account_has_its_permissions(cluster: Cluster, account_directory: Path) -> None:
    account = ServiceAccount(pod_environment(cluster), account_directory)
    assert account.namespace == cluster.namespace
    async with client_with(account) as api:
        assert await list_pods(api, cluster) == []
        with pytest.raises(ApiError) as refused:
            await api.request("GET", path_of("secrets", cluster.namespace))
        assert (refused.value.status, refused.value.reason) == (403, "Forbidden")


async def test_token_is_read_again_after_the_server_has_rejected_it(cluster: Cluster, account_directory: Path) -> None:
    async with client_with(ServiceAccount(pod_environment(cluster), account_directory)) as api:
        assert await list_pods(api, cluster) == []
        cluster.client.delete("serviceaccounts", cluster.namespace, "router")
        cluster.create_service_account("router")  # with the same name, but another uid
        (account_directory / "token").write_text(cluster.create_token("router"))
        assert await list_pods(api, cluster) == []


async def test_request_with_an_invalid_token_is_retried_once(cluster: Cluster, account_directory: Path) -> None:
    (account_directory / "token").write_text("invalid")
    async with client_with(ServiceAccount(pod_environment(cluster), account_directory)) as api:
        with pytest.raises(ApiError) as refused:
            await list_pods(api, cluster)
        assert refused.value.status == 401
        assert api.request_counts["get", "pods", 401] == 2


async def test_server_certificate_of_another_ca_is_not_trusted(cluster: Cluster, account_directory: Path) -> None:
    (account_directory / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    async with client_with(ServiceAccount(pod_environment(cluster), account_directory)) as api:
        with pytest.raises(OSError, match="certificate"):
            await list_pods(api, cluster)
        (account_directory / "ca.crt").write_bytes(cluster.access.authority)  # the kubelet renews the certificate
        assert await list_pods(api, cluster) == []


def write_certificates_without_key_identifiers(directory: Path) -> None:
    """Write `ca.crt`, and a server's `tls.crt` and `tls.key`, without the key identifiers that many clusters lack."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("ca", "kubernetes")]
    for number, file in enumerate(("ca.crt", "tls.crt")):
        certificate = (
            x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("kubernetes")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        (directory / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_format = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "tls.key").write_bytes(keys[1].private_bytes(serialization.Encoding.PEM, *key_format))


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Perform a TLS handshake in memory. Raises ssl.SSLError if one side does not trust the other."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    unfinished = [
        client.wrap_bio(to_client, to_server, server_hostname="kubernetes"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for side in list(unfinished):
            try:
                side.do_handshake()
                unfinished.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not unfinished


def test_certificates_without_key_identifiers_are_trusted(tmp_path: Path) -> None:
    write_certificates_without_key_identifiers(tmp_path)
    (tmp_path / "token").write_text("token")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    create_default_context = ssl.create_default_context

    def create_strict_context(*, cafile: str) -> ssl.SSLContext:  # the default since Python 3.13
        context = create_default_context(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    with mock.patch.object(ssl, "create_default_context", create_strict_context):
        environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        context = ServiceAccount(environment, tmp_path).tls()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(create_strict_context(cafile=str(tmp_path / "ca.crt")), server)
    handshake(context, server)


@pytest.mark.parametrize("missing", ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "token"])
def test_kubeconfig_is_required_outside_of_a_pod(cluster: Cluster, account_directory: Path, missing: str) -> None:
    environment = pod_environment(cluster)
    environment.pop(missing, None)
    if missing == "token":
        (account_directory / missing).unlink()
    with pytest.raises(SettingsError) as refused:
        ServiceAccount(environment, account_directory)
    assert refused.value.setting == "kubeconfig"


def test_ipv6_address_is_bracketed(account_directory: Path) -> None:
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    assert ServiceAccount(environment, account_directory).url == "https://[fd00::1]:443"


async def test_kubeconfig_with_a_token_authenticates(cluster: Cluster, account_directory: Path) -> None:
    kubeconfig = await load_credentials(cluster.write_kubeconfig("router"))
    assert kubeconfig.namespace == cluster.namespace
    async with client_with(kubeconfig) as api:
        assert await list_pods(api, cluster) == []


async def test_kubeconfig_of_an_administrator_authenticates(cluster: Cluster) -> None:
    """Kubeconfigs of administrators usually have a client certificate."""
    async with client_with(await load_credentials(cluster.admin)) as api:
        await api.request("GET", path_of("nodes"))
        assert await list_pods(api, cluster) == []


async def test_named_pipe_in_place_of_a_kubeconfig_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kubeconfig")
    with pytest.raises(SettingsError, match=r"cannot be used: .*Not a regular file"):
        await load_credentials(tmp_path / "kubeconfig")


def test_default_kubeconfig_is_that_of_kubectl(tmp_path: Path) -> None:
    home = tmp_path / ".kube" / "config"
    environment = {"HOME": str(tmp_path)}
    assert default_kubeconfig(environment) is None
    home.parent.mkdir()
    home.touch()
    assert default_kubeconfig(environment) == home
    (tmp_path / "other").touch()
    listed = f"{tmp_path}/none:{tmp_path}/other"
    assert default_kubeconfig({**environment, "KUBECONFIG": listed}) == tmp_path / "other"
    assert default_kubeconfig({**environment, "KUBECONFIG": f"{tmp_path}/none"}) is None


async def test_kubeconfig_of_the_environment_authenticates(cluster: Cluster, account_directory: Path) -> None:
    credentials = await load_credentials(None, {"KUBECONFIG": str(cluster.write_kubeconfig("router"))})
    assert credentials.namespace == cluster.namespace


@pytest.mark.parametrize("text", ["", "no: kubeconfig", "]["])
async def test_error_names_an_invalid_kubeconfig(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        await load_credentials(file)
    assert refused.value.setting == "kubeconfig"
    assert str(file) in str(refused.value)
