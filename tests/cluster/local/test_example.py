"""The shipped example, run as a newcomer would: a real model behind the real model server."""

import json
import socket
from pathlib import Path

from router.cluster.local import example_path, example_request_path
from router.cluster.local.file import load_local
from router.services import Replica
from tests.cluster.local.world import ask, pids_with, run, running


def score(replica: Replica, body: str) -> tuple[int, object]:
    status, text = ask(replica.port, "/score", "POST", body)
    return status, json.loads(text)


def own_address() -> str:
    """An address of this machine that is not the loopback one; no packet is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lookup:
        lookup.connect(("192.0.2.1", 9))
        address: str = lookup.getsockname()[0]
        return address


def listens(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


def test_the_example_scores_through_the_inference_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        key = ("iris", "default")
        async with running(load_local(example_path()), tmp_path) as (cluster, seen):
            # Two at once: one of them trains the model, the other waits for it.
            cluster.scale(key, 2)
            await seen.until(lambda: len(seen.ready("iris")) == 2)
            for replica in seen.ready("iris"):
                assert score(replica, example_request_path().read_text()) == (
                    200,
                    {"predictions": ["setosa", "virginica"]},
                )
                assert listens("127.0.0.1", replica.port)
                assert not listens(own_address(), replica.port)
            await check_bad_input(seen.ready("iris")[0])
            models = tmp_path / "models" / "iris" / "default"
            assert sorted(path.suffix for path in models.iterdir()) == [".joblib", ".lock"]
            ports = [str(replica.port) for replica in seen.ready("iris")]
        assert not [pid for port in ports for pid in pids_with(f"--port\0{port}")]

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
            status, answer = score(replica, body)
            assert status == 400, body[:80]
            assert isinstance(answer, dict)
            assert answer["message"].startswith(message)

    run(scenario())
