"""`python -m tests.kube_standin.api_server`: an API server for development. Writes a kubeconfig for kubectl."""

import argparse
import asyncio
import contextlib
import ssl
import sys
from pathlib import Path

import trustme

from tests.kube_standin.api_server.defaults import PLUGINS
from tests.kube_standin.api_server.process import kubeconfig, write_config
from tests.kube_standin.api_server.server import ApiServer, Options


async def _serve(arguments: argparse.Namespace) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL  # clients have a certificate or a token
    admin = authority.issue_cert(common_name="kubernetes-admin", organization_name="system:masters")
    options = Options(
        arguments.history, arguments.bookmark_seconds, arguments.watch_seconds, PLUGINS - set(arguments.disabled)
    )
    server = ApiServer(options)
    port = await server.start(context, arguments.port)
    url = f"https://127.0.0.1:{port}"
    certificate, key = admin.cert_chain_pems[0].bytes(), admin.private_key_pem.bytes()
    config = kubeconfig(url, authority.cert_pem.bytes(), certificate=certificate, key=key)
    write_config(arguments.kubeconfig, config)
    print(f"serves {url}; KUBECONFIG={arguments.kubeconfig}", flush=True)
    try:
        if arguments.until_stdin_ends:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()
    finally:
        await server.stop()


def main() -> None:
    """Serve until interrupted, or until standard input ends."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.kube_standin.api_server", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="file to write for clients")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument(
        "--history", type=int, default=defaults.history_length, help="number of writes that watches can go back"
    )
    parser.add_argument("--bookmark-seconds", type=float, default=defaults.bookmark_seconds)
    parser.add_argument("--watch-seconds", type=float, default=defaults.watch_seconds)
    parser.add_argument(
        "--disable-admission-plugin",
        dest="disabled",
        action="append",
        default=[],
        choices=sorted(PLUGINS),
        help="can be given several times",
    )
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input is closed")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
