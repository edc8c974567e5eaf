"""The folder that collected data is stored in."""

import os
from pathlib import Path

import pytest

from router.collection.store import FileLostError, FolderStore, RefusedError, StoreError


def test_repeated_append_stores_the_data_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "new", 1000)
    for offset, data in ((0, b"one\n"), (0, b"one\n"), (4, b"two\n"), (4, b"two\n")):
        store.append("a/b.jsonl", offset, data)
    assert (tmp_path / "new/a/b.jsonl").read_bytes() == b"one\ntwo\n"


def test_append_replaces_what_a_failed_one_has_left(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 1000)
    store.append("f", 0, b"one\n")
    with (tmp_path / "f").open("ab") as file:
        file.write(b"tw")
    store.append("f", 4, b"two\n")
    assert (tmp_path / "f").read_bytes() == b"one\ntwo\n"


def test_missing_beginning_is_detected(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 1000)
    with pytest.raises(FileLostError):
        store.append("f", 4, b"two\n")
    (tmp_path / "f").write_bytes(b"on")
    with pytest.raises(FileLostError):
        store.append("f", 4, b"two\n")


def test_blob_appears_when_it_is_complete(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, 1000)
    store.stage("a/blob", 0, 0, b"ab")
    store.stage("a/blob", 1, 2, b"c")
    assert not (tmp_path / "a/blob").exists()
    for _ in range(2):
        store.commit("a/blob", 2, "text/plain")
    assert (tmp_path / "a/blob").read_bytes() == b"abc"
    assert store.url("a/blob") == (tmp_path / "a/blob").as_uri()
    store.stage("a/other", 0, 0, b"ab")
    store.discard("a/other")
    store.discard("a/other")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["blob"]


def test_limit_includes_what_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x" * 90)
    store = FolderStore(tmp_path, 100)
    store.append("f", 0, b"y" * 10)
    with pytest.raises(RefusedError) as caught:
        store.append("f", 10, b"z")
    assert caught.value.reason == "folder-full"
    assert (tmp_path / "f").read_bytes() == b"y" * 10


def test_full_folder_is_used_again_after_files_were_removed(tmp_path: Path) -> None:
    now = 0.0
    store = FolderStore(tmp_path, 100, lambda: now)
    store.append("old/f", 0, b"x" * 100)
    (tmp_path / "old/f").unlink()
    with pytest.raises(RefusedError):  # it is not measured for each append
        store.append("f", 0, b"y" * 60)
    now = 60.0
    store.append("f", 0, b"y" * 60)
    with pytest.raises(RefusedError):
        store.append("f", 60, b"y" * 60)


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "new", 1000)
    store.append("a/f", 0, b"x")
    store.stage("a/g", 0, 0, b"x")
    store.commit("a/g", 1, "")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").rglob("*")}
    assert modes == {"a": 0o700, "f": 0o600, "g": 0o600}


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "f").symlink_to(tmp_path / "target")
    with pytest.raises(StoreError):
        FolderStore(tmp_path, 1000).append("f", 0, b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written_fails_and_may_be_repeated(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError) as caught:
            FolderStore(tmp_path, 1000).append("a/f", 0, b"x")
        assert caught.value.reason == "failed"
    finally:
        tmp_path.chmod(0o700)
