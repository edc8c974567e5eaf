"""Generated keys are stable, private, and written atomically."""

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from router.cluster.local.key_store import KeyStore
from router.config.schema import SettingsError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_service_keeps_its_generated_keys(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    primary, secondary = KeyStore(state_dir).keys_for(["iris"])["iris"]
    assert len(primary) == len(secondary) == 43
    assert primary != secondary
    assert KeyStore(state_dir).keys_for(["iris"])["iris"] == (primary, secondary)
    assert KeyStore(state_dir).keys_for(["other"])["other"] != (primary, secondary)
    assert KeyStore(state_dir).keys_for(["iris"])["iris"] == (primary, secondary)


def test_keys_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    previous_umask = os.umask(0)
    try:
        store = KeyStore(tmp_path / "state")
        store.keys_for(["iris"])["iris"]
    finally:
        os.umask(previous_umask)
    assert mode_of(store.path) == 0o600
    assert mode_of(store.path.parent) == 0o700


def test_file_readable_by_others_is_made_private_with_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    store = KeyStore(tmp_path, warn=warnings.append)
    keys = store.keys_for(["iris"])["iris"]
    store.path.chmod(0o644)
    assert store.keys_for(["iris"])["iris"] == keys
    assert mode_of(store.path) == 0o600
    assert warnings == [f"{store.path} was readable by other users (mode 0644); its mode is 0600 now"]


def test_regenerate_replaces_one_key_and_keeps_the_other(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    primary, secondary = store.keys_for(["iris"])["iris"]
    assert not store.has_changed()
    new_primary = KeyStore(tmp_path).regenerate("iris", "primary")
    assert store.has_changed()
    assert new_primary != primary
    assert store.keys_for(["iris"])["iris"] == (new_primary, secondary)
    assert not store.has_changed()
    new_secondary = store.regenerate("iris", "secondary")
    assert store.keys_for(["iris"])["iris"] == (new_primary, new_secondary)


def test_given_keys_replace_others_only_on_request(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    others = store.keys_for(["resnet"])["resnet"]
    assert store.store("iris", "first-key", "second-key", replace=False)
    assert mode_of(store.path) == 0o600
    assert store.keys_for(["iris", "resnet"]) == {"iris": ("first-key", "second-key"), "resnet": others}
    assert not store.store("iris", "first-key", "second-key", replace=True)
    assert not store.has_changed()
    with pytest.raises(SettingsError, match="has other keys, which its clients may use; --replace") as caught:
        store.store("iris", "first-key", "other-key", replace=False)
    assert "other-key" not in str(caught.value)
    assert store.keys_for(["iris"]) == {"iris": ("first-key", "second-key")}
    assert store.store("iris", "first-key", "other-key", replace=True)
    assert store.keys_for(["iris"]) == {"iris": ("first-key", "other-key")}


def test_stored_keys_generates_none(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    with pytest.raises(SettingsError, match=r'keys.json: no service "\w+"; services with stored keys: none yet'):
        store.stored_keys("iris")
    primary, secondary = store.keys_for(["iris"])["iris"]
    assert store.stored_keys("iris") == {"primary": primary, "secondary": secondary}
    with pytest.raises(SettingsError, match=r'no service "iri"; did you mean iris\? services with stored keys: iris'):
        store.stored_keys("iri")


def test_removed_file_counts_as_changed(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    assert not store.has_changed()
    keys = store.keys_for(["iris"])["iris"]
    store.path.unlink()
    assert store.has_changed()
    assert store.keys_for(["iris"])["iris"] != keys


def test_regenerate_rejects_unknown_key_names(tmp_path: Path) -> None:
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
def test_invalid_file_is_rejected_kept_and_not_quoted(tmp_path: Path, content: str) -> None:
    store = KeyStore(tmp_path)
    store.path.write_text(content)
    with pytest.raises(SettingsError, match="is not a keys file") as raised:
        store.keys_for(["iris"])["iris"]
    assert str(store.path) in str(raised.value)
    assert "s3cret" not in str(raised.value)
    assert store.path.read_text() == content


def test_link_and_fifo_are_rejected(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "state")
    store.keys_for(["iris"])["iris"]
    other = tmp_path / "other.json"
    store.path.rename(other)
    store.path.symlink_to(other)
    with pytest.raises(OSError, match="symbolic links"):
        store.keys_for(["iris"])["iris"]
    store.path.unlink()
    os.mkfifo(store.path)
    with pytest.raises(SettingsError, match="must be a regular file owned by the user"):
        store.keys_for(["iris"])["iris"]


def test_keys_generated_concurrently_are_all_kept(tmp_path: Path) -> None:
    names = [f"service-{number}" for number in range(12)]
    generated: dict[str, tuple[str, str]] = {}

    def generate(name: str) -> None:
        generated[name] = KeyStore(tmp_path).keys_for([name])[name]

    threads = [threading.Thread(target=generate, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = KeyStore(tmp_path)
    assert {name: store.keys_for([name])[name] for name in names} == generated
    assert sorted(json.loads(store.path.read_text())["services"]) == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.lock"]


def test_full_disk_raises_an_error_with_the_file_and_keeps_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(tmp_path / "state")
    before = store.keys_for(["iris"])["iris"]

    def fsync(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device") as caught:
        store.regenerate("iris", "primary")
    assert caught.value.filename == str(store.path)
    assert store.keys_for(["iris"])["iris"] == before
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["keys.json", "keys.lock"]
