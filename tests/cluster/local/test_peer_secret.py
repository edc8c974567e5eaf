"""The secret that the routers of one user share: generated once, private, and rejected if others can read it."""

import os
import stat
import threading
from pathlib import Path

import pytest

from router.cluster.local.peer_secret import load_or_create_peer_secret
from router.config.schema import SettingsError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secret_is_generated_once(tmp_path: Path) -> None:
    secret = load_or_create_peer_secret(tmp_path / "a" / "state")
    assert len(secret) == 32
    assert load_or_create_peer_secret(tmp_path / "a" / "state") == secret
    assert load_or_create_peer_secret(tmp_path / "b") != secret
    assert [path.name for path in (tmp_path / "a" / "state").iterdir()] == ["peer-secret"]


def test_secret_is_private_whatever_the_umask(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    previous_umask = os.umask(0)
    try:
        load_or_create_peer_secret(directory)
    finally:
        os.umask(previous_umask)
    assert mode_of(directory / "peer-secret") == 0o600
    assert mode_of(directory) == 0o700


def test_routers_that_start_concurrently_get_the_same_secret(tmp_path: Path) -> None:
    secrets: list[bytes] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        secrets.append(load_or_create_peer_secret(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 8
    assert len(set(secrets)) == 1
    assert os.listdir(tmp_path) == ["peer-secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_file_readable_or_writable_by_others_is_rejected_without_quoting_it(tmp_path: Path, mode: int) -> None:
    secret = load_or_create_peer_secret(tmp_path)
    path = tmp_path / "peer-secret"
    path.chmod(mode)
    with pytest.raises(SettingsError) as caught:
        load_or_create_peer_secret(tmp_path)
    rule = "must be a regular file readable only by the user who runs the router"
    assert str(caught.value) == f"{path}: peer secret: {rule}"
    assert repr(secret) not in repr(caught.value)


def test_named_pipe_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "peer-secret", 0o600)
    with pytest.raises(SettingsError, match="must be a regular file"):
        load_or_create_peer_secret(tmp_path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31])
def test_too_short_secret_is_rejected_with_a_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peer-secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="must be at least 32 bytes; remove it to have a new one generated"):
        load_or_create_peer_secret(tmp_path)
    path.unlink()
    assert len(load_or_create_peer_secret(tmp_path)) == 32


def test_link_is_not_followed(tmp_path: Path) -> None:
    load_or_create_peer_secret(tmp_path / "elsewhere")
    (tmp_path / "peer-secret").symlink_to(tmp_path / "elsewhere" / "peer-secret")
    with pytest.raises(OSError, match="peer-secret"):
        load_or_create_peer_secret(tmp_path)


def test_directory_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "peer-secret").mkdir(mode=0o700)
    with pytest.raises(OSError, match=r"peer-secret|directory"):
        load_or_create_peer_secret(tmp_path)


def test_dangling_link_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "peer-secret").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="peer-secret"):
        load_or_create_peer_secret(tmp_path)
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(tmp_path) == ["peer-secret"]


def test_directory_without_write_permission_is_named_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^state_dir: /proc cannot be written: .+; allowed: a directory in which"):
        load_or_create_peer_secret(Path("/proc"))
