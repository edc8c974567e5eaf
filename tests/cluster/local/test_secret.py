"""The secret of one user's routers: one for all, private, and refused when it is not."""

import os
import stat
import threading
from pathlib import Path

import pytest

from router.cluster.local.secret import peer_secret
from router.services import SettingsError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_once_and_stays(tmp_path: Path) -> None:
    secret = peer_secret(tmp_path / "a" / "state")
    assert len(secret) == 32
    assert peer_secret(tmp_path / "a" / "state") == secret
    assert peer_secret(tmp_path / "b") != secret
    assert [path.name for path in (tmp_path / "a" / "state").iterdir()] == ["peer-secret"]


def test_only_the_user_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    former = os.umask(0)
    try:
        peer_secret(folder)
    finally:
        os.umask(former)
    assert mode_of(folder / "peer-secret") == 0o600
    assert mode_of(folder) == 0o700


def test_routers_that_start_at_once_have_the_same(tmp_path: Path) -> None:
    found: list[bytes] = []
    together = threading.Barrier(8)

    def start() -> None:
        together.wait()
        found.append(peer_secret(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert os.listdir(tmp_path) == ["peer-secret"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_one_that_others_can_read_or_write_is_refused_without_being_shown(tmp_path: Path, mode: int) -> None:
    secret = peer_secret(tmp_path)
    path = tmp_path / "peer-secret"
    path.chmod(mode)
    with pytest.raises(SettingsError) as caught:
        peer_secret(tmp_path)
    said = str(caught.value)
    assert said == f"{path}: peer secret: must be a file that only the router's user can read"
    assert repr(secret) not in repr(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 31])
def test_one_that_is_too_short_is_refused_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peer-secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SettingsError, match="must hold at least 32 bytes; remove it for a new one"):
        peer_secret(tmp_path)
    path.unlink()
    assert len(peer_secret(tmp_path)) == 32


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    peer_secret(tmp_path / "elsewhere")
    (tmp_path / "peer-secret").symlink_to(tmp_path / "elsewhere" / "peer-secret")
    with pytest.raises(OSError, match="peer-secret"):
        peer_secret(tmp_path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "peer-secret").mkdir(mode=0o700)
    with pytest.raises(OSError, match=r"peer-secret|directory"):
        peer_secret(tmp_path)


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "peer-secret").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError, match="peer-secret"):
        peer_secret(tmp_path)
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(tmp_path) == ["peer-secret"]
