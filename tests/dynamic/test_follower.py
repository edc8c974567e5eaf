"""The dynamic configuration of a router: a real file as its source, and a real state directory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from router.config.dynamic import DynamicSettings
from router.config.router import load_settings
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.dynamic import follower
from router.dynamic.follower import DynamicConfig
from router.dynamic.last_valid import LastValidFile
from router.dynamic.source import MAX_DOCUMENT_BYTES, Document, FileSource, SourceUnavailable


class Directory:
    """A directory with the source and the state of a router, and what the router has applied."""

    def __init__(self, path: Path) -> None:
        self.file = path / "dynamic.yaml"
        self.state_dir = path / "state"
        self.applied: list[DynamicSettings] = []
        self.error: Exception | None = None

    def write(self, content: str | bytes) -> None:
        new = self.file.with_suffix(".new")
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        new.replace(self.file)

    def config(self, **settings: Any) -> DynamicConfig:
        source = FileSource(self.file, sleep=lambda _: None)
        return DynamicConfig(
            source, LastValidFile(self.state_dir, source.name), load_settings(environ={}, flags=settings)
        )

    def check(self, settings: DynamicSettings) -> None:
        if self.error is not None:
            raise self.error

    async def apply(self, settings: DynamicSettings) -> None:
        self.check(settings)
        self.applied.append(settings)


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "router.dynamic")
    return caplog


async def test_document_is_used_at_the_start_and_applied_when_it_changes(directory: Directory) -> None:
    directory.write("router: {max_headers: 5}")
    config = directory.config()
    assert (await config.load(directory.check)).router == {"max_headers": 5}
    await config.poll(directory.apply)
    assert directory.applied == []
    directory.write("router: {max_headers: 6}")
    await config.poll(directory.apply)
    await config.poll(directory.apply)
    assert [each.router for each in directory.applied] == [{"max_headers": 6}]
    assert config.settings is directory.applied[0]
    assert list(config.problems({})) == []
    assert config.document()["etag"]


INVALID = {
    "half-written": (b"router: {max_headers: 7, log_le", "is not YAML"),
    "empty": (b"", "must be a mapping"),
    "UTF-16": ("router: {max_headers: 7}".encode("utf-16"), "must be UTF-8 text"),
    "Latin-1": (b"router: {max_headers: 7} # \xe9", "must be UTF-8 text"),
    "binary": (bytes(range(256)), "must be UTF-8 text"),
    "100 MB": (b"router: {max_headers: 7}\n" + b"#" * 100_000_000, f"must not exceed {MAX_DOCUMENT_BYTES} bytes"),
    "a bomb of aliases": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%b]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 8)) for n in range(9)),
        "must not contain more than",
    ),
    "a tag": (b"router: !!python/object/apply:os.system [id]", "must not use the tag"),
    "forbidden": (b"router: {max_headers: 7, host: 0.0.0.0}", "host: not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_document_is_refused_as_a_whole(
    directory: Directory, name: str, log: pytest.LogCaptureFixture
) -> None:
    content, problem = INVALID[name]
    directory.write("router: {max_headers: 5}")
    config = directory.config()
    await config.load(directory.check)
    directory.write(content)
    await config.poll(directory.apply)
    await config.poll(directory.apply)
    assert directory.applied == []
    assert config.settings.router == {"max_headers": 5}
    assert (config.is_refused, config.refusal_count) == (True, 1)
    (problem_of_source,) = config.problems({})
    shown = problem_of_source.text
    assert "is refused, the last valid one stays in effect" in shown
    assert problem in shown
    assert [record.levelname for record in log.records if "refused" in record.msg] == ["ERROR"]
    directory.write("router: {max_headers: 8}")
    await config.poll(directory.apply)
    assert not config.is_refused
    assert [each.router for each in directory.applied] == [{"max_headers": 8}]


async def test_document_that_contradicts_other_settings_is_refused(directory: Directory) -> None:
    directory.write("router: {max_headers: 5}")
    config = directory.config()
    await config.load(directory.check)
    directory.error = SettingsError("min_workers", 9, "must not exceed max_workers")
    directory.write("router: {min_workers: 9}")
    await config.poll(directory.apply)
    assert config.settings.router == {"max_headers": 5}
    assert "min_workers = 9: must not exceed max_workers" in next(config.problems({})).text


async def test_document_that_cannot_be_applied_now_is_tried_again(directory: Directory) -> None:
    """A full disk is not an error of the document."""
    directory.write("router: {max_headers: 5}")
    config = directory.config()
    directory.error = OSError(28, "No space left on device")
    await config.poll(directory.apply)
    assert not config.is_refused
    directory.error = None
    await config.poll(directory.apply)
    assert [each.router for each in directory.applied] == [{"max_headers": 5}]


async def test_last_valid_one_is_used_while_the_source_is_away_also_after_a_restart(
    directory: Directory, log: pytest.LogCaptureFixture
) -> None:
    directory.write("router: {max_headers: 5}")
    await directory.config().load(directory.check)
    directory.file.unlink()
    config = directory.config()
    assert (await config.load(directory.check)).router == {"max_headers": 5}
    (problem,) = config.problems({})
    assert "cannot be read since" in problem.text
    assert "No such file or directory" in problem.text
    directory.write("router: {max_headers: 6}")
    await config.poll(directory.apply)
    assert list(config.problems({})) == []
    assert [each.router for each in directory.applied] == [{"max_headers": 6}]
    assert any("can be read again" in record.msg for record in log.records)


async def test_last_valid_one_is_used_after_a_restart_with_an_invalid_document(directory: Directory) -> None:
    directory.write("router: {max_headers: 5}")
    await directory.config().load(directory.check)
    directory.write("router: {max_headers: x}")
    config = directory.config()
    assert (await config.load(directory.check)).router == {"max_headers": 5}
    assert config.is_refused


async def test_last_valid_one_is_checked_again(directory: Directory) -> None:
    """The permissions may have been taken back meanwhile."""
    directory.write("router: {host: '::'}")
    await directory.config(dynamic_config_allow="host").load(directory.check)
    directory.file.unlink()
    assert (await directory.config(dynamic_config_allow="host").load(directory.check)).router == {"host": "::"}
    assert (await directory.config().load(directory.check)).router == {}


async def test_last_valid_one_of_another_source_is_not_used(directory: Directory) -> None:
    directory.write("router: {max_headers: 5}")
    await directory.config().load(directory.check)
    directory.file = directory.file.with_name("other.yaml")
    assert (await directory.config().load(directory.check)).router == {}


async def test_unusable_state_directory_concerns_only_the_next_start(
    directory: Directory, log: pytest.LogCaptureFixture
) -> None:
    directory.state_dir.write_text("not a directory")
    directory.write("router: {max_headers: 5}")
    assert (await directory.config().load(directory.check)).router == {"max_headers": 5}
    assert any("cannot be stored for the next start" in record.msg for record in log.records)


async def test_stored_file_is_private(directory: Directory) -> None:
    directory.write("{}")
    await directory.config().load(directory.check)
    (stored,) = directory.state_dir.glob("dynamic-config-*.json")
    assert stored.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "5", "{", '{"source": "x"}'])
async def test_malformed_stored_file_is_ignored(directory: Directory, content: str) -> None:
    directory.write("{}")
    await directory.config().load(directory.check)
    (stored,) = directory.state_dir.glob("dynamic-config-*.json")
    stored.write_text(content)
    directory.file.unlink()
    assert await directory.config().load(directory.check) == DynamicSettings()


async def test_settings_of_unknown_services_and_versions_are_a_problem(directory: Directory) -> None:
    directory.write("services: {iris: {versions: {default: {}, green: {}}}, gone: {}}")
    config = directory.config()
    await config.load(directory.check)
    (problem,) = config.problems({"iris": parse_service("iris", {})})
    assert problem.cause.endswith("has settings of what is not served here")
    assert problem.detail == "version green of service iris, service gone"
    assert list(config.problems({})) == []  # the services are not known yet


class ScriptedSource:
    """A source whose next reads are given."""

    name = "https://account.example/container/dynamic.yaml"

    def __init__(self, *reads: Callable[[], Document | None]) -> None:
        self.reads = list(reads)

    async def fetch(self, etag: str) -> Document | None:
        return self.reads.pop(0)()

    def close(self) -> None:
        pass


def fails(reason: str, retry_after: float = 0.0) -> Callable[[], Document | None]:
    def read() -> Document | None:
        raise SourceUnavailable(reason, retry_after)

    return read


async def test_reads_of_a_failing_source_slow_down_and_obey_it(
    directory: Directory, log: pytest.LogCaptureFixture
) -> None:
    source = ScriptedSource(*[fails("status 500")] * 8, fails("status 429", 120), fails("x", 1e9), lambda: None)
    settings = load_settings(environ={})
    config = DynamicConfig(source, LastValidFile(directory.state_dir, source.name), settings)
    delays = [await config.poll(directory.apply) for _ in range(11)]
    assert all(before * 0.8 <= after * 1.25 for before, after in pairwise(delays[:7]))
    assert 40 <= delays[7] <= 60
    assert (delays[8], delays[9], delays[10]) == (120, 600, settings.dynamic_config_poll_seconds)
    assert len([record for record in log.records if "cannot be read" in record.msg]) == 1


async def test_hanging_source_is_a_failure(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    class HangingSource(ScriptedSource):
        async def fetch(self, etag: str) -> Document | None:
            await asyncio.Event().wait()
            return None

    monkeypatch.setattr(follower, "FETCH_SECONDS", 0.01)
    source = HangingSource()
    config = DynamicConfig(source, LastValidFile(directory.state_dir, source.name), load_settings(environ={}))
    await config.poll(directory.apply)
    assert "no response within 0.01 s; none is in effect" in next(config.problems({})).text
    (sample,) = config.samples()
    assert sample.value > 0
