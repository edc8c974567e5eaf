"""SIGINT and SIGTERM while modules are imported, and as process 1 of a PID namespace."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.cli.early_signals import exit_on_signals, restore_default_handlers
from tests.processes import TIMEOUT_SECONDS, children_of, handles_signal, wait_until
from tests.routers import ROOT, router_environment

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Runs the entry of the command in a process that sends a signal to itself at one of its imports.
SENDER = """
import os, runpy, signal, sys
number, moment, place, *command = sys.argv[1:]
number, moment, default = int(number), int(moment), signal.getsignal(int(number))

def send():
    os.kill(os.getpid(), number)
    for _ in range(1000):  # Python calls the handler of a signal between two instructions
        pass

class Destroyed:
    def __del__(self):  # Python prints and ignores exceptions of a destructor
        send()

def on_event(event, _):
    global moment
    if event == "import" and signal.getsignal(number) is not default:
        moment -= 1
        if moment == 0:
            if place == "destructor":
                Destroyed()
            else:
                send()

sys.addaudithook(on_event)
sys.argv = ["azureml-fe", *command]
runpy.run_module("router", run_name="__main__")
"""


def run_and_send(number: signal.Signals, moment: int, place: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `azureml-fe` with the arguments `command`. It sends itself a signal at the import with the number `moment`,
    counted from the installation of signal handlers on."""
    return subprocess.run(
        [sys.executable, "-c", SENDER, str(int(number)), str(moment), place, *command],
        env=router_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["import", "destructor"])
@pytest.mark.parametrize("moment", [1, 40, 300])
def test_signal_during_an_import_ends_the_process_quietly(number: signal.Signals, place: str, moment: int) -> None:
    ended = run_and_send(number, moment, place, "local", "no-such-file.yaml")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_process_without_a_signal_gets_beyond_these_imports() -> None:
    ended = run_and_send(signal.SIGTERM, 100_000, "import", "local", "no-such-file.yaml")
    assert ended.returncode == 2
    assert "no-such-file.yaml" in ended.stderr


def test_handlers_are_installed_before_other_modules_are_imported(tmp_path: Path) -> None:
    script = "import sys; import router.__main__ as entry; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {script}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout.split()  # fmt: skip
    own = {name for name in loaded if name.partition(".")[0] == "router"}
    assert own == {"router", "router.__main__", "router.cli", "router.cli.early_signals"}
    assert len(loaded) < 80, loaded


@pytest.mark.parametrize("number", SIGNALS)
def test_other_commands_get_the_default_handlers_back(number: signal.Signals) -> None:
    default = signal.getsignal(number)
    exit_on_signals()
    assert signal.getsignal(number) is not default
    restore_default_handlers()
    assert signal.getsignal(number) is default


def test_ignored_signal_stays_ignored() -> None:
    """A shell without job control starts background commands so that they ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        exit_on_signals()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        restore_default_handlers()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        restore_default_handlers()
        signal.signal(signal.SIGINT, before)


def can_be_process_1() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode == 0


def wait_for_handlers(parent: int) -> int:
    """Wait until the router that is a child of `parent` handles SIGTERM. Return its process id."""

    def handling() -> list[int]:
        return [pid for pid in children_of(parent, "-m router") if handles_signal(pid, signal.SIGTERM)]

    wait_until(handling, "signal handlers")
    return handling()[0]


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("number", SIGNALS)
def test_process_1_is_ended_by_a_signal_during_the_start(tmp_path: Path, number: signal.Signals) -> None:
    """The kernel drops signals to process 1 for which it has no handler."""
    if not can_be_process_1():
        pytest.skip("run the tests as root, with the right to create a PID namespace")
    config = tmp_path / "models.yaml"
    config.write_text('{"services": {"a": {"addresses": "127.0.0.1:9"}}, "router": {"port": 0, "admin_port": 0}}')
    command = [sys.executable, "-m", "router", "local", str(config), "--state-dir", str(tmp_path / "state")]
    for moment in range(3):
        with subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *command],
            env=router_environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as unshare:  # fmt: skip
            router = wait_for_handlers(unshare.pid)
            time.sleep(0.1 * moment)
            os.kill(router, number)
            _, errors = unshare.communicate(timeout=TIMEOUT_SECONDS)
            assert unshare.returncode in (0, 1)
            assert "Traceback" not in errors
