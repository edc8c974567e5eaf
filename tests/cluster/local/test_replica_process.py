"""Replicas as processes: start, exit, stop, ports and environment; no process is left behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from router.cluster.local.log_file import LogFile
from router.cluster.local.probe import probe
from router.cluster.local.program import Program, build_program, check_server_installed
from router.cluster.local.replica_process import PortAllocator, ReplicaProcess
from router.config.schema import SettingsError
from tests.cluster.local.helpers import echo_server_command, launch_settings
from tests.processes import TIMEOUT_SECONDS, pids_with, running_processes, send_request

HOST = "127.0.0.1"


def echo_server_process(directory: Path, port: int, **options: object) -> ReplicaProcess:
    launch = launch_settings(directory, command=tuple(echo_server_command(**options)))
    program = build_program(("s", "v"), launch, host=HOST, port=port, model_dir=directory)
    return ReplicaProcess(program, host=HOST, port=port, log=LogFile(directory / f"{port}.log"))


def python_process(
    directory: Path, code: str, *arguments: str, inherits_socket: bool = False, port: int = 1
) -> ReplicaProcess:
    """A replica process that runs this Python code."""
    program = Program(
        arguments=(sys.executable, "-c", code, *arguments),
        directory=directory,
        environment=dict(os.environ),
        inherits_socket=inherits_socket,
    )
    return ReplicaProcess(program, host=HOST, port=port, log=LogFile(directory / "out.log"))


async def run_to_end(process: ReplicaProcess) -> tuple[str, str]:
    """Run the process; return how it ended and its output."""
    await process.start()
    return await process.wait(), process.log.tail()


async def wait_until_ready(process: ReplicaProcess) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await probe(process.host, process.port, "/", 2.0) is not None:
            await asyncio.sleep(0.01)


async def test_process_serves_until_stopped(tmp_path: Path, mark: str) -> None:
    process = echo_server_process(tmp_path, PortAllocator(HOST).allocate(), mark=mark)
    await process.start()
    ending = asyncio.create_task(process.wait())
    await wait_until_ready(process)
    assert send_request(process.port, "/score", b"hello").body == b"hello"
    assert pids_with(mark) == [process.pid]
    await process.stop()
    assert await ending == "signal SIGTERM"


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_wait_returns_the_exit_reason_on_every_event_loop(tmp_path: Path, runner: object) -> None:
    async def scenario() -> None:
        assert (await run_to_end(python_process(tmp_path, "raise SystemExit(7)")))[0] == "exit code 7"
        assert (await run_to_end(python_process(tmp_path, "import os; os.kill(os.getpid(), 9)")))[0] == "signal SIGKILL"
        assert (await run_to_end(python_process(tmp_path, "import os; os.kill(os.getpid(), 40)")))[0] == "signal 40"

    assert callable(runner)
    runner(scenario())


async def test_missing_program_is_reported_in_the_output(tmp_path: Path) -> None:
    program = Program(arguments=("no-such-program",), directory=tmp_path, environment={"PATH": "/bin"})
    process = ReplicaProcess(program, host=HOST, port=1, log=LogFile(tmp_path / "out.log"))
    assert await run_to_end(process) == (
        "exit code 127",
        "cannot run no-such-program: No such file or directory",
    )


async def test_start_in_a_missing_directory_raises_and_stop_returns(tmp_path: Path) -> None:
    process = python_process(tmp_path / "none", "pass")
    process.log.path = tmp_path / "out.log"
    with pytest.raises(FileNotFoundError):
        await process.start()
    await process.stop()


async def test_process_killed_before_its_start_never_runs(tmp_path: Path) -> None:
    process = python_process(tmp_path, "print('ran')")
    process.kill()
    await process.start()
    assert process.pid is None
    assert await process.wait() == "not started"
    await process.stop()


async def test_stop_kills_the_whole_group_even_if_it_ignores_sigterm(tmp_path: Path, mark: str) -> None:
    process = echo_server_process(tmp_path, PortAllocator(HOST).allocate(), mark=mark, child=mark, ignore_sigterm=1)
    await process.start()
    ending = asyncio.create_task(process.wait())
    await wait_until_ready(process)
    assert len(pids_with(mark)) == 2
    await process.stop(grace_seconds=0.1)
    assert pids_with(mark) == []
    assert await ending == "signal SIGKILL"


async def test_process_that_exits_leaves_no_child_behind(tmp_path: Path, mark: str) -> None:
    process = echo_server_process(tmp_path, PortAllocator(HOST).allocate(), mark=mark, child=mark, exit_after_start=3)
    await process.start()
    assert await process.wait() == "exit code 3"
    assert pids_with(mark) == []


async def test_cancelled_stop_kills(tmp_path: Path, mark: str) -> None:
    process = echo_server_process(tmp_path, PortAllocator(HOST).allocate(), mark=mark, ignore_sigterm=1)
    await process.start()
    ending = asyncio.create_task(process.wait())
    await wait_until_ready(process)
    stopping = asyncio.create_task(process.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    assert await ending == "signal SIGKILL"


async def test_replica_exits_when_the_router_is_killed(tmp_path: Path, mark: str) -> None:
    router = f"""
import asyncio, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from tests.cluster.local.test_replica_process import echo_server_process
async def main():
    process = echo_server_process(Path({str(tmp_path)!r}), int(sys.argv[1]), mark=sys.argv[2])
    await process.start()
    await process.wait()
asyncio.run(main())
"""

    port = PortAllocator(HOST).allocate()
    with subprocess.Popen([sys.executable, "-c", router, str(port), mark]) as parent:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await probe(HOST, port, "/", 2.0) is not None:
                await asyncio.sleep(0.02)
            assert len(pids_with(mark)) == 2
            parent.send_signal(signal.SIGKILL)
            while pids_with(mark):
                await asyncio.sleep(0.02)


async def test_process_has_its_own_session_and_inherits_no_descriptor_or_signal_state(tmp_path: Path) -> None:
    code = """
import os, signal
print(os.getsid(0) == os.getpid() == os.getpgrp())
print(os.readlink("/dev/fd/0"), sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1])
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
ignored = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn"))
# Python ignores SIGPIPE (13) and SIGXFSZ (25) itself.
print(blocked, hex(int(ignored, 16) & ~(1 << 12) & ~(1 << 24)))
"""
    with socket.create_server((HOST, 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        _, output = await run_to_end(python_process(tmp_path, code))
    assert output.splitlines() == ["True", "/dev/null [0, 1, 2]", "set() 0x0"]


async def test_sigpipe_has_its_default_action(tmp_path: Path) -> None:
    launch = launch_settings(tmp_path, command=("sh", "-c", "yes 2>&1 | head -n 1"))
    program = build_program(("s", "v"), launch, host=HOST, port=1, model_dir=tmp_path)
    process = ReplicaProcess(program, host=HOST, port=1, log=LogFile(tmp_path / "out.log"))
    assert await run_to_end(process) == ("exit code 0", "y")


async def test_passed_socket_listens_on_the_given_host_only(tmp_path: Path) -> None:
    code = """
import os, socket
listener = socket.socket(fileno=3)
print(listener.getsockname()[0], os.environ["LISTEN_FDS"], int(os.environ["LISTEN_PID"]) == os.getpid())
"""
    process = python_process(tmp_path, code, inherits_socket=True, port=PortAllocator(HOST).allocate())
    assert (await run_to_end(process))[1] == "127.0.0.1 1 True"


async def test_start_fails_if_the_port_is_in_use(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        exit_reason, output = await run_to_end(python_process(tmp_path, "pass", inherits_socket=True, port=port))
    assert (exit_reason, output) == ("exit code 1", f"cannot listen on 127.0.0.1:{port}: Address already in use")


async def test_processes_leak_no_descriptor_and_no_zombie(tmp_path: Path) -> None:
    def descriptors_and_children() -> tuple[int, int]:
        children = [process for process in running_processes(with_zombies=True) if process.parent == os.getpid()]
        return len(os.listdir("/proc/self/fd")), len(children)

    await run_to_end(python_process(tmp_path, "pass"))
    before = descriptors_and_children()
    for _ in range(5):
        await run_to_end(python_process(tmp_path, "pass"))
    assert descriptors_and_children() == before


def test_allocated_ports_are_distinct_and_below_the_ephemeral_range() -> None:
    ports = PortAllocator(HOST)
    allocated = [ports.allocate() for _ in range(50)]
    assert len(set(allocated)) == 50
    assert all(20_000 <= port < 30_000 for port in allocated)


def test_port_in_use_is_not_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr("router.cluster.local.replica_process.random.randint", lambda low, high: port)
        with pytest.raises(OSError, match="no free port from 20000 to 29999 on"):
            PortAllocator(HOST).allocate()
    ports = PortAllocator(HOST)
    assert ports.allocate() == port
    with pytest.raises(OSError, match="no free port"):
        ports.allocate()
    ports.release(port)
    assert ports.allocate() == port


def test_environment_has_host_and_port_and_no_router_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZUREML_FE_TOKEN_KEY", "s3cret")
    monkeypatch.setenv("FROM_SHELL", "shell")
    monkeypatch.setenv("BOTH", "shell")
    launch = launch_settings(
        tmp_path, command=("python", "{host}", "{port}"), environment={"BOTH": "file", "PRIVATE": "s3cret"}
    )
    program = build_program(("s", "v"), launch, host=HOST, port=123, model_dir=tmp_path)
    assert program.arguments == (sys.executable, HOST, "123")
    assert (program.environment["HOST"], program.environment["PORT"]) == (HOST, "123")
    assert program.environment["SERVICE_PATH_PREFIX"] == "/api/v1/service/s"
    assert (program.environment["FROM_SHELL"], program.environment["BOTH"]) == ("shell", "file")
    assert not any(name.startswith("AZUREML_FE_") for name in program.environment)
    assert "s3cret" not in repr(program)


def test_environment_of_an_entry_script_names_its_model_directory_and_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
    launch = launch_settings(tmp_path, entry_script=tmp_path / "score.py")

    def environment() -> dict[str, str]:
        return dict(build_program(("iris", "v"), launch, host=HOST, port=1, model_dir=tmp_path / "m").environment)

    assert environment()["AZUREML_MODEL_DIR"] == str(tmp_path / "m")
    assert environment()["AML_APP_ROOT"] == str(tmp_path)
    assert environment()["SERVICE_NAME"] == "iris"
    monkeypatch.setenv("AZUREML_MODEL_DIR", "/models")
    assert environment()["AZUREML_MODEL_DIR"] == "/models"


def test_entry_script_without_the_inference_server_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launch_settings(tmp_path, entry_script=tmp_path / "score.py")
    check_server_installed(("iris", "blue"), launch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"service iris, version blue: entry_script = .* needs azureml-inference"):
        check_server_installed(("iris", "blue"), launch)
    check_server_installed(("iris", "blue"), launch_settings(tmp_path, command=("python",)))
