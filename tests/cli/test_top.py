"""`azureml-fe top`: the lines of a screen, and the command in a terminal."""

import fcntl
import io
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any

import pytest
from rich.cells import cell_len

from router.cli import arguments
from router.cli.main import main
from router.cli.top import StatusUnavailable, keys_of, parse, run_top, status_url
from router.cli.top_view import ORDERS, TopView
from tests.processes import TIMEOUT_SECONDS, wait_until
from tests.routers import StartRouter, open_echo_service, router_environment


def version(**changes: Any) -> dict[str, Any]:
    return {
        "name": "default", "in_flight": 1, "queued": 0, "slots": 2, "requests_per_second": 3.5,
        "refused_per_second": 0.0, "utilization": 0.5, "desired": 2, "states": {"ready": 2},
        "replicas": [
            {"state": "ready", "in_flight": 1, "slots": 1}, {"state": "ready", "in_flight": 0, "slots": 1},
            {"state": "starting", "in_flight": 0, "slots": 1}, {"state": "draining", "in_flight": 0, "slots": 1},
        ],
        **changes,
    }  # fmt: skip


def status(*services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "router": {"version": "1.2.3", "pod": "pod-1", "leads": True, "config_in_force": True},
        "totals": {
            "requests_per_second": 3.5, "in_flight": 1, "queued": 0, "refused_per_second": 0, "replicas_ready": 2,
            "services": len(services),
        },
        "services": list(services),
        "decisions": [],
        "workers": [{"name": "worker-0", "state": "accepting", "in_flight": 1}],
        "peers": [],
        "config_errors": [],
        **changes,
    }  # fmt: skip


def service(name: str, *versions: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "versions": list(versions or (version(),))}


def lines_of(document: dict[str, Any], width: int = 120, height: int = 0, *keys: str) -> list[str]:
    """Return the lines after these keys."""
    view = TopView()
    view.lines(document, width, height)
    for key in keys:
        assert view.on_key(key)
    return [line.plain for line in view.lines(document, width, height)]


def test_version_is_a_line_with_a_cell_per_replica() -> None:
    (line,) = [line for line in lines_of(status(service("iris"))) if line.startswith("iris")]
    assert line.split() == ["iris", "2/2", "3.5", "0", "50%", "1/2", "0", "█·+-"]


def test_abandoned_requests_suspect_slots_and_ejected_replicas_are_shown() -> None:
    replicas = [
        {"id": "iris-1", "state": "ready", "in_flight": 0, "abandoned": 1, "slots": 1, "health": None},
        {
            "id": "iris-2", "state": "ready", "in_flight": 0, "abandoned": 0, "slots": 1,
            "health": {"ejected_until": 1_000_000_000.0, "ejected_for": "5 failures in a row"},
        },
        {"id": "iris-3", "state": "ready", "in_flight": 0, "slots": 1, "health": {"ejected_until": None}},
    ]  # fmt: skip
    document = status(service("iris", version(abandoned=1, suspect_slots=2, replicas=replicas)))
    document["totals"]["abandoned"] = 1
    lines = lines_of(document)
    assert "1 in flight  1 abandoned  0 queued" in lines[1]
    number = next(number for number, line in enumerate(lines) if line.startswith("iris"))
    assert lines[number].split()[-1] == "█!·"
    assert lines[number + 1] == "  1 abandoned (replicas go on with them), 2 suspect slots (used last)"
    until = time.strftime("%H:%M:%S", time.localtime(1_000_000_000))
    assert lines[number + 2] == f"  iris-2 gets no requests until {until}: 5 failures in a row"


def test_several_versions_are_named_and_unlimited_slots_are_omitted() -> None:
    document = status(service("ab", version(name="blue"), version(name="green", slots=None, utilization=None)))
    lines = [line.split() for line in lines_of(document) if line.startswith("ab")]
    assert lines[0][0] == "ab/blue"
    assert lines[1] == ["ab/green", "2/2", "3.5", "0", "1", "0", "█·+-"]


def group(cause: str, *services: str, **fields: Any) -> dict[str, Any]:
    """Return a group of problems of these services, by default of the router."""
    problems = max(1, len(services))
    return {
        "cause": cause,
        "note": "",
        "output": "",
        "problems": problems,
        "services": services,
        "more_services": 0,
    } | fields


def test_group_of_problems_is_one_line() -> None:
    groups = [
        group("no worker accepts clients", note="worker-1"),
        group("is not ready", "iris", problems=3, note="iris-1, for 9 s"),
        group("is refused", *"abcdefgh", problems=70, more_services=50),
    ]
    lines = lines_of(status(service("iris"), problem_groups=groups), 120, 24)
    assert "no worker accepts clients (worker-1)" in lines
    assert "service iris: is not ready (iris-1, for 9 s), and 2 more like this" in lines
    assert "58 services: is refused (a, b, c, d, e and 53 more)" in lines
    assert lines_of(status(service("iris"), problem_groups=groups), 80, 10)[0].startswith("74 problems: no worker")


def many_services(count: int = 1000) -> dict[str, Any]:
    return status(
        *(service(f"service-{number:04}") for number in range(count)),
        decisions=[{"time": 0, "service": "a", "version": "default", "desired": 3, "reason": "x" * 300}] * 9,
        peers=[{"name": "pod-2", "standing": "live", "services_owned": 3, "encrypted": True}] * 20,
        problem_groups=[
            group(cause, output="details") for cause in ("first problem", "second problem", "third", "fourth")
        ],
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (30, 8), (200, 60), (20, 5), (10, 3)])
def test_lines_fit_into_the_terminal_and_show_services(width: int, height: int) -> None:
    lines = lines_of(many_services(), width, height)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) == height
    assert any(line.startswith("service-0" if width >= 20 else "service") for line in lines)


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (30, ["SERVICE", "READY", "REQ/S"]),
        (60, ["SERVICE", "READY", "REQ/S", "QUEUED", "USED", "IN", "FLIGHT"]),
        (120, ["SERVICE", "READY", "REQ/S", "QUEUED", "USED", "IN", "FLIGHT", "REFUSED/S", "REPLICAS"]),
    ],
)
def test_narrow_terminals_have_the_most_important_columns(width: int, titles: list[str]) -> None:
    document = status(service("iris"))
    (header,) = [line for line in lines_of(document, width, 24) if line.startswith("SERVICE")]
    assert header.split() == titles
    assert len(header) == width


def test_wide_characters_are_as_wide_as_the_terminal_shows_them() -> None:
    document = status(service("モデル" * 20))
    assert all(cell_len(line) <= 60 for line in lines_of(document, 60, 24))


def first_service(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("service-")).split()[0]


def test_keys_scroll_through_all_services() -> None:
    document = many_services()
    for keys, first in (
        (["down", "j"], "service-0002"),
        (["j", "up", "k", "k"], "service-0000"),
        (["pagedown"], "service-0009"),
        (["pagedown", " ", "pageup"], "service-0009"),
        (["end"], "service-0991"),
        (["G", "g"], "service-0000"),
        (["end", "down", "down"], "service-0991"),
    ):
        lines = lines_of(document, 80, 24, *keys)
        assert first_service(lines) == first, keys
    assert lines[-1].startswith("992-1000 of 1000")


def test_filter_is_typed_kept_and_removed() -> None:
    document = many_services()
    typing = lines_of(document, 80, 24, "end", "/", *"0x", "backspace", *"99")
    assert typing[-1] == "/099_"
    assert [line.split()[0] for line in typing if line.startswith("service-")][:2] == ["service-0099", "service-0990"]
    kept = lines_of(document, 80, 24, "/", *"0099", "enter", "s")
    assert kept[-1].startswith("1-1 of 1  /0099")
    assert lines_of(document, 80, 24, "/", *"0099", "enter", "esc")[-1].startswith("1-9 of 1000")
    assert lines_of(document, 80, 24, "/", *"nosuch", "enter")[-1].startswith("0-0 of 0")


def test_help_is_a_screen_of_its_own_and_any_key_ends_it() -> None:
    document = status(service("iris"))
    assert any("scroll by a page" in line for line in lines_of(document, 80, 24, "?"))
    assert len(lines_of(document, 30, 8, "?")) == 8
    assert any(line.startswith("iris") for line in lines_of(document, 80, 24, "?", "q"))


def test_only_quitting_keys_quit() -> None:
    view = TopView()
    assert all(view.on_key(key) for key in ("x", "", "esc", "/", "q", "enter"))
    assert not view.on_key("q")
    assert not TopView().on_key("ctrl-c")


def test_services_are_sorted_by_each_order() -> None:
    document = status(
        service("a", version(queued=1, utilization=0.9)),
        service("b", version(queued=5, utilization=0.1)),
        service("c", version(queued=0, utilization=0.2, requests_per_second=9)),
        service("d", version(queued=0, utilization=None, requests_per_second=0, refused_per_second=1)),
    )

    def names(*keys: str) -> str:
        return "".join(line[0] for line in lines_of(document, 120, 24, *keys) if line[1:2] == " " and line[0] in "abcd")

    orders = {order: names(*["s"] * number) for number, order in enumerate(ORDERS)}
    assert orders == {
        "name": "abcd", "queued": "bacd", "utilization": "acbd", "requests": "cabd", "refused": "dabc",
    }  # fmt: skip
    assert names("r") == "dcba"
    assert names("s", "r") == "cdab"


def test_keys_of_a_terminal_are_named() -> None:
    assert keys_of("a\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1b[F\r\x7f\x1b[99;5u\x1b\x03é") == [
        "a", "up", "down", "pageup", "pagedown", "home", "end", "enter", "backspace", "", "esc", "ctrl-c", "é",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["http://h:9090", "http://h:9090/", "http://h:9090/status", "http://h:9090/status.json", "http://h:9090/#iris"],
)
def test_url_of_the_page_is_accepted(url: str) -> None:
    assert status_url(arguments.url(url)) == "http://h:9090/status.json"
    assert status_url(arguments.url("https://h/proxy/status?x=1")) == "https://h/proxy/status.json"


def test_control_characters_are_replaced() -> None:
    document = status(service("iris"), config_errors=[{"error": "bad \x1b[2J\n value"}])
    document["router"]["config_in_force"] = False
    assert not any("\x1b" in line or "\n" in line for line in lines_of(document))
    assert any("rejected settings: bad ?[2J" in line for line in lines_of(document))


def test_version_with_refused_requests_is_coloured() -> None:
    lines = TopView().lines(status(service("iris", version(refused_per_second=1.0))), 80, 24)
    assert [line.style for line in lines if line.plain.startswith("iris")] == ["red"]


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"services": 1}', b"\xff"])
def test_other_document_is_an_error(body: bytes) -> None:
    with pytest.raises(StatusUnavailable, match="http://x: this is not the status of a router"):
        parse(body, "http://x")


def test_status_is_printed_once_without_a_terminal() -> None:
    out = io.StringIO()
    assert run_top(lambda: status(service("iris")), out, once=False) == 0
    assert "iris" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_problems_are_complete_without_a_terminal_unless_columns_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = "is not ready, " * 20 + "end"
    problems = [f"service m{number}: {cause}" for number in range(5)]
    document = status(service("n" * 60), problem_groups=[group(cause, f"m{number}") for number in range(5)])

    def printed() -> list[str]:
        out = io.StringIO()
        run_top(lambda: document, out, once=True)
        return out.getvalue().splitlines()

    monkeypatch.delenv("COLUMNS", raising=False)
    assert [line for line in printed() if line.startswith("service m")] == problems
    (row,) = [line for line in printed() if line.startswith("n")]
    assert row.split() == ["n" * 60, "2/2", "3.5", "0", "50%", "1/2", "0", "█·+-"]
    monkeypatch.setenv("COLUMNS", "60")
    assert [line for line in printed() if line.startswith("service m")] == [
        problem[:60].rstrip() for problem in problems
    ]
    assert max(map(len, printed())) <= 60


def test_problem_that_is_longer_than_the_screen_continues_on_a_second_line() -> None:
    cause = "refuses 86 % of its requests: needs 38 replicas, has 2 (num_replicas is 2)"
    problem = f"service resnet: {cause}"
    lines = lines_of(status(service("iris"), problem_groups=[group(cause, "resnet")]), 60, 24)
    first = next(number for number, line in enumerate(lines) if line.startswith("service resnet"))
    assert lines[first : first + 2] == [problem[:54], f"  {problem[55:]}"]
    lines = lines_of(status(service("iris"), problem_groups=[group("a word " * 50)]), 60, 24)
    assert [line.startswith("  ") for line in lines[first : first + 3]] == [False, True, False]
    assert lines[first + 1].endswith(" ...")


def test_terminal_output_needs_no_pygments() -> None:
    """The image has none."""
    program = (
        "import sys; sys.modules['pygments'] = None\n"
        "import router.cli.console\n"
        "from router.cli.top import run_top\n"
        f"run_top(lambda: {status()!r}, sys.stdout, once=True)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "0 services" in output


def test_more_load_than_capacity_is_full() -> None:
    loaded = version(utilization=12.97, queued=25)
    (line,) = [line for line in lines_of(status(service("iris", loaded))) if line.startswith("iris")]
    assert line.split()[:5] == ["iris", "2/2", "3.5", "25", "full"]


def test_screen_has_the_first_problems_and_one_is_singular() -> None:
    groups = [group("x", f"m{number}") for number in range(4)]
    lines = lines_of(status(service("iris"), problem_groups=groups), 80, 24)
    assert "... and 1 more problem" in lines
    assert lines_of(status(service("iris"), problem_groups=[group("x")]), 80, 10)[0] == "1 problem: x"
    document = status(service("iris"))
    document["totals"]["replicas_ready"] = 1
    assert lines_of(document)[1].endswith("  1 replica ready  1 service")
    assert lines_of(status())[1].endswith("  2 replicas ready  0 services")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x y"])
def test_invalid_url_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url]) == 2
    assert "allowed: http://HOST:PORT" in capsys.readouterr().err


def test_refused_connection_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == (
        "azureml-fe: http://127.0.0.1:1/status.json: Connection refused; "
        'is a router running? give the URL that it prints as "status page"\n'
    )


def test_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:2")
    monkeypatch.delenv("no_proxy", raising=False)
    proxied: list[str] = []
    monkeypatch.setattr(
        "urllib.request.ProxyHandler.proxy_open", lambda self, request, proxy, kind: proxied.append(proxy)
    )
    for host in ("127.0.0.1", "[::1]", "localhost", "router.invalid"):
        main(["top", f"{host}:1"])
    assert proxied == ["http://127.0.0.1:2"]


def test_default_url_is_the_admin_port_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_FE_ADMIN_HOST", "::1")
    monkeypatch.setenv("AZUREML_FE_ADMIN_PORT", "1")
    assert main(["top"]) == 1
    assert "http://[::1]:1/status.json: " in capsys.readouterr().err


def _take_terminal() -> None:
    """Make the terminal the controlling one, so that Ctrl-C sends SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The command in a terminal with `size` lines and columns, and its output."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (30, 100), **environment: str) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self._before = termios.tcgetattr(other)
        self._other = other
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router", "top", *arguments],
            stdin=other, stdout=other, stderr=other, env=router_environment() | {"TERM": "xterm"} | environment,
            preexec_fn=_take_terminal,
            start_new_session=True,
        )  # fmt: skip

    def wait_for(self, pattern: str) -> None:
        """Wait until the output from now on matches `pattern`."""
        self.text = ""
        wait_until(lambda: re.search(pattern, self._read()), pattern)

    def _read(self) -> str:
        while select.select([self._own], [], [], 0.02)[0]:
            self.text += os.read(self._own, 65536).decode()
        return self.text

    def press(self, key: str) -> None:
        os.write(self._own, key.encode())

    def wait_for_end(self) -> int:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        code = self.process.wait(1)
        self._read()
        assert termios.tcgetattr(self._other) == self._before, "the terminal is not restored"
        os.close(self._own)
        os.close(self._other)
        return code


def test_terminal_follows_changes_until_q(start: StartRouter) -> None:
    router = start({"iris": open_echo_service(num_replicas=2), "slow": open_echo_service(delay=0.4)})
    terminal = Terminal(f"http://127.0.0.1:{router.admin_port}/")
    terminal.wait_for(r"iris +2/2 .*··")
    with router.load("slow", clients=3):
        terminal.wait_for(r"slow +1/1 +\S+ +[12] .*█")
    terminal.wait_for(r"slow +1/1 +\S+ +0 .*·")
    terminal.press("s")
    terminal.wait_for("by queued")
    terminal.press("/iri")
    terminal.wait_for("/iri_")
    assert "slow" not in terminal.text
    terminal.press("\rq")
    assert terminal.wait_for_end() == 0
    assert terminal.text.rindex("\x1b[?1049l") > terminal.text.rindex("iris")
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("iris")


@pytest.mark.parametrize("columns", [30, 100])
def test_ctrl_c_ends_without_an_error(start: StartRouter, columns: int) -> None:
    router = start({"iris": open_echo_service()})
    terminal = Terminal(f"http://127.0.0.1:{router.admin_port}/", size=(8, columns), NO_COLOR="1")
    terminal.wait_for("iris +1/1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.text)
    terminal.press("\x03")
    assert terminal.wait_for_end() == 0


def test_document_is_printed_as_json(start: StartRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router = start({"iris": open_echo_service()})
    assert main(["top", f"127.0.0.1:{router.admin_port}", "--output", "json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["services"]] == ["iris"]
