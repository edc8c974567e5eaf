"""A replica as a process: how it starts, how it is asked, and that nothing of it stays."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router.cluster.local.file import Launch
from router.cluster.local.log import LogFile
from router.cluster.local.probe import probe
from router.cluster.local.program import Program, check_can_run, program_of
from router.cluster.local.replica import Ports, ReplicaProcess
from router.services import SettingsError
from tests.cluster.local.world import PATIENCE_SECONDS, ask, marked, pids_with, run, words_of_echo_server

HOST = "127.0.0.1"


def launch_of(folder: Path, command: tuple[str, ...] = (), **environment: str) -> Launch:
    return Launch(command=command, readiness_path="/", folder=folder, environment=environment)


def echo_server(folder: Path, port: int, **options: object) -> ReplicaProcess:
    launch = launch_of(folder, tuple(words_of_echo_server(**options)))
    program = program_of(("s", "v"), launch, host=HOST, port=port, model_dir=folder)
    return ReplicaProcess(program, host=HOST, port=port, log=LogFile(folder / f"{port}.log"))


def python(folder: Path, code: str, *arguments: str, passes_socket: bool = False, port: int = 1) -> ReplicaProcess:
    """A replica whose program is this code."""
    program = Program(
        arguments=(sys.executable, "-c", code, *arguments),
        directory=folder,
        environment=dict(os.environ),
        passes_socket=passes_socket,
    )
    return ReplicaProcess(program, host=HOST, port=port, log=LogFile(folder / "out.log"))


async def output_of(process: ReplicaProcess) -> tuple[str, str]:
    """How it ended, and what it printed."""
    await process.start()
    return await process.wait(), process.log.tail()


async def until_ready(process: ReplicaProcess) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await probe(process.host, process.port, "/", 2.0) is not None:
            await asyncio.sleep(0.01)


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    async def scenario(mark: str) -> None:
        process = echo_server(tmp_path, Ports(HOST).take(), mark=mark)
        await process.start()
        ending = asyncio.create_task(process.wait())
        await until_ready(process)
        assert ask(process.port, "/score", "POST", "hello") == (200, "hello")
        assert pids_with(mark) == [process.pid]
        await process.stop()
        assert await ending == "signal SIGTERM"

    with marked() as mark:
        run(scenario(mark))


@pytest.mark.parametrize("runner", [asyncio.run, run])
def test_how_it_ended_is_told_on_every_event_loop(tmp_path: Path, runner: object) -> None:
    async def scenario() -> None:
        assert (await output_of(python(tmp_path, "raise SystemExit(7)")))[0] == "exit code 7"
        assert (await output_of(python(tmp_path, "import os; os.kill(os.getpid(), 9)")))[0] == "signal SIGKILL"
        assert (await output_of(python(tmp_path, "import os; os.kill(os.getpid(), 40)")))[0] == "signal 40"

    assert callable(runner)
    runner(scenario())


def test_a_program_that_is_not_there_says_so_in_its_output(tmp_path: Path) -> None:
    async def scenario() -> None:
        program = Program(arguments=("no-such-program",), directory=tmp_path, environment={"PATH": "/bin"})
        process = ReplicaProcess(program, host=HOST, port=1, log=LogFile(tmp_path / "out.log"))
        assert await output_of(process) == (
            "exit code 127",
            "cannot run no-such-program: No such file or directory",
        )

    run(scenario())


def test_a_folder_that_is_not_there_raises_and_stop_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = python(tmp_path / "none", "pass")
        process.log.path = tmp_path / "out.log"
        with pytest.raises(FileNotFoundError):
            await process.start()
        await process.stop()

    run(scenario())


def test_one_that_is_stopped_before_it_starts_never_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = python(tmp_path, "print('ran')")
        process.kill()
        await process.start()
        assert process.pid is None
        assert await process.wait() == "not started"
        await process.stop()

    run(scenario())


def test_stopping_reaches_all_that_it_started_even_what_ignores_the_signal(tmp_path: Path) -> None:
    async def scenario(mark: str) -> None:
        process = echo_server(tmp_path, Ports(HOST).take(), mark=mark, child=mark, ignore_sigterm=1)
        await process.start()
        ending = asyncio.create_task(process.wait())
        await until_ready(process)
        assert len(pids_with(mark)) == 2
        await process.stop(grace_seconds=0.1)
        assert pids_with(mark) == []
        assert await ending == "signal SIGKILL"

    with marked() as mark:
        run(scenario(mark))


def test_one_that_dies_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scenario(mark: str) -> None:
        process = echo_server(tmp_path, Ports(HOST).take(), mark=mark, child=mark, exit_after_start=3)
        await process.start()
        assert await process.wait() == "exit code 3"
        assert pids_with(mark) == []

    with marked() as mark:
        run(scenario(mark))


def test_cancelled_stopping_kills(tmp_path: Path) -> None:
    async def scenario(mark: str) -> None:
        process = echo_server(tmp_path, Ports(HOST).take(), mark=mark, ignore_sigterm=1)
        await process.start()
        ending = asyncio.create_task(process.wait())
        await until_ready(process)
        stopping = asyncio.create_task(process.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        assert await ending == "signal SIGKILL"

    with marked() as mark:
        run(scenario(mark))


def test_it_dies_with_a_router_that_is_killed(tmp_path: Path) -> None:
    router = f"""
import asyncio, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from tests.cluster.local.test_replica import echo_server
async def main():
    process = echo_server(Path({str(tmp_path)!r}), int(sys.argv[1]), mark=sys.argv[2])
    await process.start()
    await process.wait()
asyncio.run(main())
"""

    async def scenario(mark: str) -> None:
        port = Ports(HOST).take()
        with subprocess.Popen([sys.executable, "-c", router, str(port), mark]) as parent:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await probe(HOST, port, "/", 2.0) is not None:
                    await asyncio.sleep(0.02)
                assert len(pids_with(mark)) == 2
                parent.send_signal(signal.SIGKILL)
                while pids_with(mark):
                    await asyncio.sleep(0.02)

    with marked() as mark:
        run(scenario(mark))


def test_its_process_has_a_session_of_its_own_no_input_and_nothing_of_the_router(tmp_path: Path) -> None:
    code = """
import os, signal
print(os.getsid(0) == os.getpid() == os.getpgrp())
print(os.readlink("/dev/fd/0"), sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
ignored = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn"))
# Python ignores SIGPIPE (13) and SIGXFSZ (25) itself.
print(blocked, hex(int(ignored, 16) & ~(1 << 12) & ~(1 << 24)))
"""

    async def scenario() -> None:
        with socket.create_server((HOST, 0)) as listener:
            os.set_inheritable(listener.fileno(), True)
            _, printed = await output_of(python(tmp_path, code))
        assert printed.splitlines() == ["True", "/dev/null [0, 1, 2]", "set() 0x0"]

    run(scenario())


def test_a_broken_pipe_ends_its_programs_as_anywhere_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        launch = launch_of(tmp_path, ("sh", "-c", "yes 2>&1 | head -n 1"))
        program = program_of(("s", "v"), launch, host=HOST, port=1, model_dir=tmp_path)
        process = ReplicaProcess(program, host=HOST, port=1, log=LogFile(tmp_path / "out.log"))
        assert await output_of(process) == ("exit code 0", "y")

    run(scenario())


def test_a_socket_is_passed_on_bound_to_the_routers_host_only(tmp_path: Path) -> None:
    code = """
import os, socket
listener = socket.socket(fileno=3)
print(listener.getsockname()[0], os.environ["LISTEN_FDS"], int(os.environ["LISTEN_PID"]) == os.getpid())
"""

    async def scenario() -> None:
        process = python(tmp_path, code, passes_socket=True, port=Ports(HOST).take())
        assert (await output_of(process))[1] == "127.0.0.1 1 True"

    run(scenario())


def test_a_port_that_was_taken_meanwhile_is_a_failed_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server((HOST, 0)) as listener:
            port = listener.getsockname()[1]
            how, printed = await output_of(python(tmp_path, "pass", passes_socket=True, port=port))
        assert (how, printed) == ("exit code 1", f"cannot listen on 127.0.0.1:{port}: Address already in use")

    run(scenario())


def test_starts_and_stops_leak_no_descriptor_and_no_zombie(tmp_path: Path) -> None:
    def state() -> tuple[int, int]:
        children = subprocess.run(
            ["ps", "--no-headers", "-o", "pid", "--ppid", str(os.getpid())], check=False, capture_output=True, text=True
        )
        return len(os.listdir("/proc/self/fd")), len(children.stdout.split())

    async def scenario() -> None:
        await output_of(python(tmp_path, "pass"))
        before = state()
        for _ in range(5):
            await output_of(python(tmp_path, "pass"))
        assert state() == before

    run(scenario())


def test_ports_are_free_distinct_and_below_those_of_outgoing_connections() -> None:
    ports = Ports(HOST)
    taken = [ports.take() for _ in range(50)]
    assert len(set(taken)) == 50
    assert all(20_000 <= port < 30_000 for port in taken)


def test_a_port_that_is_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("router.cluster.local.replica.random.randint", lambda low, high: port)
        with pytest.raises(OSError, match="no free port from 20000 to 29999 on"):
            Ports(HOST).take()
    ports = Ports(HOST)
    assert ports.take() == port
    with pytest.raises(OSError, match="no free port"):
        ports.take()
    ports.give_back(port)
    assert ports.take() == port


def test_the_environment_has_host_and_port_and_no_setting_of_the_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_FE_TOKEN_KEY", "s3cret")
    monkeypatch.setenv("FROM_SHELL", "shell")
    monkeypatch.setenv("BOTH", "shell")
    launch = launch_of(tmp_path, ("python", "{host}", "{port}"), BOTH="file", PRIVATE="s3cret")
    program = program_of(("s", "v"), launch, host=HOST, port=123, model_dir=tmp_path)
    assert program.arguments == (sys.executable, HOST, "123")
    assert (program.environment["HOST"], program.environment["PORT"]) == (HOST, "123")
    assert (program.environment["FROM_SHELL"], program.environment["BOTH"]) == ("shell", "file")
    assert not any(name.startswith("AZUREML_FE_") for name in program.environment)
    assert "s3cret" not in repr(program)


def test_an_entry_script_finds_its_model_folder_and_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
    launch = Launch(entry_script=tmp_path / "score.py", readiness_path="/", folder=tmp_path, environment={})

    def environment() -> dict[str, str]:
        return dict(program_of(("iris", "v"), launch, host=HOST, port=1, model_dir=tmp_path / "m").environment)

    assert environment()["AZUREML_MODEL_DIR"] == str(tmp_path / "m")
    assert environment()["AML_APP_ROOT"] == str(tmp_path)
    assert environment()["SERVICE_NAME"] == "iris"
    monkeypatch.setenv("AZUREML_MODEL_DIR", "/models")
    assert environment()["AZUREML_MODEL_DIR"] == "/models"


def test_an_entry_script_without_its_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(entry_script=tmp_path / "score.py", readiness_path="/", folder=tmp_path, environment={})
    check_can_run(("iris", "blue"), launch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"service iris, version blue: entry_script = .* needs azureml-inference"):
        check_can_run(("iris", "blue"), launch)
    check_can_run(("iris", "blue"), launch_of(tmp_path, ("python",)))
