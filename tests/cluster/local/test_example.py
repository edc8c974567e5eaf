"""The shipped example as a new user runs it: a real model behind the real model server."""

import json
import socket
from pathlib import Path

from router.cli.trial import SAMPLE_REQUEST
from router.cluster.local import example_path
from router.cluster.local.service_files import ServiceFiles
from router.model.services import Replica
from tests.cluster.local.helpers import running_cluster
from tests.processes import pids_with, send_request


def post_score(replica: Replica, body: str) -> tuple[int, object]:
    response = send_request(replica.port, "/score", body.encode())
    return response.status, json.loads(response.body)


def external_address() -> str:
    """A non-loopback address of this machine. Connecting a UDP socket sends no packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lookup:
        lookup.connect(("192.0.2.1", 9))
        address: str = lookup.getsockname()[0]
        return address


def has_listener(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


async def test_example_scores_through_the_inference_server(tmp_path: Path) -> None:
    async def check_bad_input(replica: Replica) -> None:
        for body, message in {
            "{": "the body must be JSON",
            "[" * 100_000: "the body must be JSON",
            "[]": 'the body must be {"data": [ROW, ...]} with 1 to 10000 rows',
            '{"data": []}': 'the body must be {"data": [ROW, ...]} with 1 to 10000 rows',
            '{"data": [[1, 2, 3, 4], [1, 2, 3]]}': "row 1 must be 4 numbers",
            '{"data": [[1, 2, 3, true]]}': "row 0 must be 4 numbers",
            '{"data": [[1, 2, 3, NaN]]}': "row 0 must be 4 numbers",
            '{"data": [[1, 2, 3, "4"]]}': "row 0 must be 4 numbers",
        }.items():
            status, result = post_score(replica, body)
            assert status == 400, body[:80]
            assert isinstance(result, dict)
            assert result["message"].startswith(message)

    key = ("iris", "default")
    async with running_cluster(ServiceFiles([example_path()]).load(), tmp_path) as (cluster, listener):
        # Two start at once: one trains the model, the other waits for it.
        cluster.scale(key, 2)
        await listener.wait_until(lambda: len(listener.ready("iris")) == 2)
        for replica in listener.ready("iris"):
            assert post_score(replica, example_path().with_name(SAMPLE_REQUEST).read_text()) == (
                200,
                {"predictions": ["setosa", "virginica"]},
            )
            assert has_listener("127.0.0.1", replica.port)
            assert not has_listener(external_address(), replica.port)
        await check_bad_input(listener.ready("iris")[0])
        models = tmp_path / "models" / "iris" / "default"
        assert sorted(path.suffix for path in models.iterdir()) == [".joblib", ".lock"]
        ports = [str(replica.port) for replica in listener.ready("iris")]
    assert not [pid for port in ports for pid in pids_with(f"--port {port} ")]
