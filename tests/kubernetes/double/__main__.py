"""`python -m tests.kubernetes.double`: a Kubernetes API server for development, with a kubeconfig for kubectl."""

import argparse
import asyncio
import contextlib
import ssl
import sys
from pathlib import Path

import trustme

from tests.kubernetes.double.defaults import PLUGINS
from tests.kubernetes.double.running import kubeconfig, write
from tests.kubernetes.double.server import Double, Options


async def _serve(words: argparse.Namespace) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL  # a client shows a certificate or a token
    master = authority.issue_cert(common_name="kubernetes-admin", organization_name="system:masters")
    double = Double(Options(words.history, words.bookmark_seconds, words.watch_seconds, PLUGINS - set(words.without)))
    port = await double.start(context, words.port)
    url = f"https://127.0.0.1:{port}"
    certificate, key = master.cert_chain_pems[0].bytes(), master.private_key_pem.bytes()
    write(words.kubeconfig, kubeconfig(url, authority.cert_pem.bytes(), certificate=certificate, key=key))
    print(f"serves {url}; KUBECONFIG={words.kubeconfig}", flush=True)
    try:
        if words.until_stdin_ends:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    finally:
        await double.stop()


def main() -> None:
    """Serve until the end."""
    usual = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes.double", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="file to write for clients")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--history", type=int, default=usual.history_length, help="writes that a watch may go back")
    parser.add_argument("--bookmark-seconds", type=float, default=usual.bookmark_seconds)
    parser.add_argument("--watch-seconds", type=float, default=usual.watch_seconds)
    parser.add_argument(
        "--disable-admission-plugin",
        dest="without",
        action="append",
        default=[],
        choices=sorted(PLUGINS),
        help="may be given several times",
    )
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input is closed")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
