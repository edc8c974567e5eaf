"""Generated keys: stable, private, and replaced as a whole."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from router.cluster.local.keys import KeyStore
from router.services import SettingsError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_service_keeps_the_keys_that_were_made_for_it(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    primary, secondary = KeyStore(state_dir).keys_for("iris")
    assert len(primary) == len(secondary) == 43
    assert primary != secondary
    assert KeyStore(state_dir).keys_for("iris") == (primary, secondary)
    assert KeyStore(state_dir).keys_for("other") != (primary, secondary)
    assert KeyStore(state_dir).keys_for("iris") == (primary, secondary)


def test_only_the_user_can_read_them(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        store = KeyStore(tmp_path / "state")
        store.keys_for("iris")
    finally:
        os.umask(former)
    assert mode_of(store.path) == 0o600
    assert mode_of(store.path.parent) == 0o700


def test_a_file_that_others_can_read_is_made_private_and_that_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    store = KeyStore(tmp_path, tell=told.append)
    keys = store.keys_for("iris")
    store.path.chmod(0o644)
    assert store.keys_for("iris") == keys
    assert mode_of(store.path) == 0o600
    assert told == [f"{store.path} could be read by others (mode 0644), now only by you (0600)"]


def test_one_key_is_made_anew_and_the_other_stays(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    primary, secondary = store.keys_for("iris")
    assert not store.changed()
    new_primary = KeyStore(tmp_path).regenerate("iris", "primary")
    assert store.changed()
    assert new_primary != primary
    assert store.keys_for("iris") == (new_primary, secondary)
    assert not store.changed()
    new_secondary = store.regenerate("iris", "secondary")
    assert store.keys_for("iris") == (new_primary, new_secondary)


def test_keys_can_be_looked_up_without_making_any(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    with pytest.raises(SettingsError, match="must be a service with generated keys: none yet"):
        store.existing("iris")
    primary, secondary = store.keys_for("iris")
    assert store.existing("iris") == {"primary": primary, "secondary": secondary}
    with pytest.raises(SettingsError, match="SERVICE = 'iri': must be a service with generated keys: iris"):
        store.existing("iri")


def test_a_removed_file_is_a_change(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    assert not store.changed()
    keys = store.keys_for("iris")
    store.path.unlink()
    assert store.changed()
    assert store.keys_for("iris") != keys


def test_there_are_only_two_keys_to_make_anew(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="must be primary or secondary"):
        KeyStore(tmp_path).regenerate("iris", "third")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"services": []}',
        '{"services": {"iris": "s3cret"}}',
        '{"services": {"iris": {"primary": "s3cret"}}}',
    ],
)
def test_a_broken_file_is_refused_kept_and_not_quoted(tmp_path: Path, content: str) -> None:
    store = KeyStore(tmp_path)
    store.path.write_text(content)
    with pytest.raises(SettingsError, match="is not a keys file") as raised:
        store.keys_for("iris")
    assert str(store.path) in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert store.path.read_text() == content


def test_something_else_than_a_file_of_the_user_is_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "state")
    store.keys_for("iris")
    elsewhere = tmp_path / "elsewhere.json"
    store.path.rename(elsewhere)
    store.path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        store.keys_for("iris")
    store.path.unlink()
    os.mkfifo(store.path)
    with pytest.raises(SettingsError, match="must be a file of the user"):
        store.keys_for("iris")


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    names = [f"service-{number}" for number in range(12)]
    made: dict[str, tuple[str, str]] = {}

    def make(name: str) -> None:
        made[name] = KeyStore(tmp_path).keys_for(name)

    threads = [threading.Thread(target=make, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = KeyStore(tmp_path)
    assert {name: store.keys_for(name) for name in names} == made
    assert sorted(json.loads(store.path.read_text())["services"]) == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.lock"]


def test_a_disk_that_is_full_is_told_with_the_file_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(tmp_path / "state")
    before = store.keys_for("iris")

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device") as caught:
        store.regenerate("iris", "primary")
    assert caught.value.filename == str(store.path)
    assert store.keys_for("iris") == before
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["keys.json", "keys.lock"]
