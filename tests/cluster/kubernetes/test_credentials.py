"""How the router proves itself to an API server: by its pod's account and by a kubeconfig."""

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from router.cluster.kubernetes.client import Api, ApiError, Object
from router.cluster.kubernetes.credentials import Credentials, PodAccount, credentials
from router.values import SettingsError
from tests.kubernetes.client import path_of
from tests.kubernetes.cluster import Cluster

READS = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]


@pytest.fixture
def account(cluster: Cluster, tmp_path: Path) -> Path:
    """The folder that the kubelet mounts into a pod whose account may list pods."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    cluster.account("router")
    cluster.allow("router", READS)
    (folder / "token").write_text(cluster.token("router") + "\n")
    (folder / "ca.crt").write_bytes(cluster.access.authority)
    (folder / "namespace").write_text(cluster.namespace)
    return folder


def environment(cluster: Cluster) -> dict[str, str]:
    """What the kubelet says of the API server."""
    address = urlsplit(cluster.access.url)
    return {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port or 443)}


def with_api(given: Credentials, story: Callable[[Api], Awaitable[None]]) -> None:
    """Tell a story with a client that proves itself so."""

    async def run() -> None:
        api = Api(given)
        try:
            await story(api)
        finally:
            await api.close()

    asyncio.run(run())


async def pods(api: Api, cluster: Cluster) -> list[Object]:
    items: list[Object] = (await api.request("GET", path_of("pods", cluster.namespace)))["items"]
    return items


def test_the_account_of_a_pod_is_let_in(cluster: Cluster, account: Path) -> None:
    given = PodAccount(environment(cluster), account)
    assert given.namespace == cluster.namespace

    async def story(api: Api) -> None:
        assert await pods(api, cluster) == []
        with pytest.raises(ApiError) as refused:
            await api.request("GET", path_of("secrets", cluster.namespace))
        assert (refused.value.status, refused.value.reason) == (403, "Forbidden")

    with_api(given, story)


def test_a_token_that_is_not_taken_any_more_is_read_anew(cluster: Cluster, account: Path) -> None:
    async def story(api: Api) -> None:
        assert await pods(api, cluster) == []
        cluster.client.delete("serviceaccounts", cluster.namespace, "router")
        cluster.account("router")  # another one of that name
        (account / "token").write_text(cluster.token("router"))
        assert await pods(api, cluster) == []

    with_api(PodAccount(environment(cluster), account), story)


def test_a_token_that_nobody_knows_is_refused_once_and_for_all(cluster: Cluster, account: Path) -> None:
    (account / "token").write_text("none of any account")

    async def story(api: Api) -> None:
        with pytest.raises(ApiError) as refused:
            await pods(api, cluster)
        assert refused.value.status == 401
        assert api.calls["get", "pods", 401] == 2  # the second with what the file had then

    with_api(PodAccount(environment(cluster), account), story)


def test_a_server_of_another_authority_is_not_trusted(cluster: Cluster, account: Path) -> None:
    (account / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())

    async def story(api: Api) -> None:
        with pytest.raises(OSError, match="certificate"):
            await pods(api, cluster)
        (account / "ca.crt").write_bytes(cluster.access.authority)  # renewed
        assert await pods(api, cluster) == []

    with_api(PodAccount(environment(cluster), account), story)


def plain_certificates(folder: Path) -> None:
    """`ca.crt`, and a server's `tls.crt` and `tls.key`, as many a cluster has them: without identifiers of keys."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in ("authority", "kubernetes")]
    for number, file in enumerate(("ca.crt", "tls.crt")):
        made = (
            x509.CertificateBuilder(names[0], names[number], keys[number].public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("kubernetes")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=not number, path_length=None), critical=True)
            .sign(keys[0], hashes.SHA256())
        )
        (folder / file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(keys[1].private_bytes(serialization.Encoding.PEM, *form))


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A handshake without a network. Raises ssl.SSLError when one side does not trust the other."""
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    asks = client.wrap_bio(one, other, server_hostname="kubernetes")
    answers = server.wrap_bio(other, one, server_side=True)
    left = [asks, answers]
    for _ in range(10):
        for side in list(left):
            try:
                side.do_handshake()
                left.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not left


def test_certificates_without_key_identifiers_are_trusted(tmp_path: Path) -> None:
    plain_certificates(tmp_path)
    (tmp_path / "token").write_text("token")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    usual = ssl.create_default_context

    def strict(*, cafile: str) -> ssl.SSLContext:  # as Python 3.13 makes it
        made = usual(cafile=cafile)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    with mock.patch.object(ssl, "create_default_context", strict):
        variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        trusting = PodAccount(variables, tmp_path).tls()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(strict(cafile=str(tmp_path / "ca.crt")), server)
    shake_hands(trusting, server)


@pytest.mark.parametrize("missing", ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "token"])
def test_outside_of_a_pod_a_kubeconfig_is_asked_for(cluster: Cluster, account: Path, missing: str) -> None:
    variables = environment(cluster)
    variables.pop(missing, None)
    if missing == "token":
        (account / missing).unlink()
    with pytest.raises(SettingsError) as wrong:
        PodAccount(variables, account)
    assert wrong.value.setting == "kubeconfig"


def test_an_address_of_ip_version_6_is_bracketed(account: Path) -> None:
    given = PodAccount({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, account)
    assert given.url == "https://[fd00::1]:443"


def test_a_kubeconfig_is_let_in(cluster: Cluster, account: Path) -> None:
    given = asyncio.run(credentials(cluster.kubeconfig("router")))
    assert given.namespace == cluster.namespace

    async def story(api: Api) -> None:
        assert await pods(api, cluster) == []

    with_api(given, story)


def test_a_kubeconfig_of_an_administrator_is_let_in(cluster: Cluster) -> None:
    """Mostly with a certificate of a client."""

    async def story(api: Api) -> None:
        await api.request("GET", path_of("nodes"))
        assert await pods(api, cluster) == []

    with_api(asyncio.run(credentials(cluster.admin)), story)


@pytest.mark.parametrize("text", ["", "no: kubeconfig", "]["])
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    with pytest.raises(SettingsError) as wrong:
        asyncio.run(credentials(file))
    assert (wrong.value.setting, str(file) in str(wrong.value)) == ("kubeconfig", True)
