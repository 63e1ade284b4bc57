"""The fork server that makes the workers: its copies, their parent, and the loss of any of these processes."""

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

from registry_proxy.node import fork_server
from registry_proxy.node.fork_server import ForkServer, RunCopy, name_process, serve_forks
from registry_proxy.tasks import spawn

PATIENCE_SECONDS = 30
COMMAND = [sys.executable, "-c", "from tests.node.test_fork_server import main; main()"]


def open_here() -> list[str]:
    """Return the files and sockets that this process has open, beside its input and output."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing
            if int(name) > 2:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def tell_and_wait(maker: int, descriptors: list[int]) -> int:
    """Report the view of a copy, then wait until the other side of its channel is closed."""
    name_process("copy")
    with socket.socket(fileno=descriptors[0]) as channel:
        seen: dict[str, Any] = {"pid": os.getpid(), "parent": os.getppid(), "maker": maker}
        seen |= {"open": open_here(), "given": len(descriptors)}
        channel.sendall(json.dumps(seen).encode() + b"\n")
        channel.recv(1)
    return 7


def load() -> RunCopy:
    """Return the function that the copies of these tests run."""
    maker = os.getpid()
    return lambda descriptors: tell_and_wait(maker, descriptors)


def main() -> None:
    """Be a fork server that was started anew."""
    sys.exit(serve_forks(load, *map(int, sys.argv[1:])))


Start = Callable[..., ForkServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a fork server: ``start(load, command)``."""
    with ExitStack() as stack:
        yield lambda load, command=COMMAND: stack.enter_context(closing(ForkServer(load, command)))


async def copy(forks: ForkServer, *more: int) -> tuple[socket.socket, dict[str, Any]]:
    """Make a copy; return the channel to it and its report."""
    ours, theirs = socket.socketpair()
    with theirs:
        pid = await forks.fork([theirs.fileno(), *more])
    ours.settimeout(PATIENCE_SECONDS)
    with ours.makefile("rb") as lines:
        seen: dict[str, Any] = json.loads(lines.readline())
    assert seen["pid"] == pid
    return ours, seen


def wait(pid: int) -> int:
    """Return the exit status of a child, negative for a signal, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def await_end(pid: int) -> None:
    """Return once a child has ended, without reaping it."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def stop(pid: int) -> None:
    """Stop a child."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def make_orphan() -> int:
    """Return the process id of a process whose parent has ended."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as receiving, os.fdopen(writing, "wb", 0) as sending:
        if (between := os.fork()) == 0:
            parent = os.getpid()
            if os.fork() == 0:
                while os.getppid() == parent:
                    pass
                sending.write(b"%d" % os.getpid())
            os._exit(0)
        sending.close()
        os.waitpid(between, 0)
        return int(receiving.read())


def test_a_copy_is_a_child_of_who_asked(start: Start) -> None:
    """The process that asks for a copy is its parent, and gets its exit status."""

    async def scenario() -> None:
        channel, seen = await copy(start(load))
        assert seen["parent"] == os.getpid()
        channel.close()
        assert wait(seen["pid"]) == 7

    asyncio.run(scenario())


def test_a_copy_has_no_descriptors_but_those_given(start: Start) -> None:
    """Sockets and files of the asking process stay out of a copy, except those that it passes on."""

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)), socket.socket() as passed_on:
            ours = open_here()
            channel, seen = await copy(start(load), passed_on.fileno())
            channel.close()
            assert wait(seen["pid"]) == 7
            assert seen["given"] == 2
            # Libuv, where an earlier test has used it, makes two pipes in each copy: they belong to no other process.
            assert set(seen["open"]) & set(ours) == {os.readlink(f"/proc/self/fd/{passed_on.fileno()}")}

    asyncio.run(scenario())


def test_a_fork_server_that_was_killed_is_replaced(start: Start) -> None:
    """With the fork server killed, running copies go on, and another fork server makes the next one."""

    async def scenario() -> None:
        forks = start(load)
        first, seen = await copy(forks)
        os.kill(seen["maker"], signal.SIGKILL)
        second, seen_then = await copy(forks)
        assert seen_then["parent"] == os.getpid()
        assert seen_then["maker"] != seen["maker"]
        for channel, pid in ((first, seen["pid"]), (second, seen_then["pid"])):
            channel.close()
            assert wait(pid) == 7

    asyncio.run(scenario())


def test_a_copy_that_nobody_heard_of_does_not_run(start: Start) -> None:
    """A fork server killed between a copy and its report leaves no copy beside the next."""

    def load_and_die() -> RunCopy:
        wait_for = os.waitpid

        def die(pid: int, options: int) -> tuple[int, int]:
            wait_for(pid, options)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        os.waitpid = die
        return load()

    async def scenario() -> None:
        channel, seen = await copy(start(load_and_die))
        channel.close()
        assert wait(seen["pid"]) == 7

    asyncio.run(scenario())


def test_an_interrupted_question_does_not_answer_the_next(start: Start) -> None:
    """A caller after an abandoned request gets its own process, and the abandoned one ends."""

    async def scenario() -> None:
        forks = start(load)
        ours, theirs = socket.socketpair()
        with theirs:
            asked = spawn(forks.fork([theirs.fileno()]), "asked")
            await asyncio.sleep(0)  # it has asked, and waits
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        ours.close()
        channel, seen = await copy(forks)
        channel.close()
        assert wait(seen["pid"]) == 7

    asyncio.run(scenario())


def test_a_renewal_takes_no_copy_from_who_waits_for_one(start: Start) -> None:
    """A fork server is renewed only when it has answered all earlier requests."""

    async def scenario() -> None:
        forks = start(load)
        asked = spawn(copy(forks), "asked")
        await asyncio.sleep(0)  # it has asked, and waits
        await forks.renew()
        for channel, seen in (await asked, await copy(forks)):
            channel.close()
            assert wait(seen["pid"]) == 7

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_it_waits_for_its_copies_whatever_process_started_it(start: Start) -> None:
    """Started by a process that ignores the end of children, it still gets the exit status of copies."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    async def scenario(forks: ForkServer) -> None:
        channel, seen = await copy(forks)
        channel.close()
        assert wait(seen["pid"]) == 7

    try:
        asyncio.run(scenario(start(load)))
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_fork_server_that_was_stopped_goes_on(start: Start) -> None:
    """With the fork server stopped by a signal, a crashed worker is replaced all the same."""

    async def scenario() -> None:
        forks = start(load)
        first, seen = await copy(forks)
        stop(seen["maker"])
        second, seen_then = await copy(forks)
        for channel, pid in ((first, seen["pid"]), (second, seen_then["pid"])):
            channel.close()
            assert wait(pid) == 7

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


@pytest.mark.parametrize(
    "command",
    [
        ["/no/such/program"],
        [sys.executable, "-c", "raise SystemExit(1)"],
        [sys.executable, "-c", "import time; time.sleep(60)"],
    ],
)
def test_a_renewal_that_fails_leaves_the_one_before(start: Start, command: list[str]) -> None:
    """After a reload that is refused, as the installed code cannot be loaded, a crashed worker is still replaced."""

    async def scenario() -> None:
        forks = start(load, command)
        first, seen = await copy(forks)
        with pytest.MonkeyPatch.context() as patched:
            if "sleep" in command[-1]:
                patched.setattr(fork_server, "_PATIENCE_SECONDS", 0.1)
            with pytest.raises(OSError, match=r"ends at once|No such file|has not answered"):
                await forks.renew()
        second, seen_then = await copy(forks)
        assert seen_then["maker"] == seen["maker"]
        for channel, pid in ((first, seen["pid"]), (second, seen_then["pid"])):
            channel.close()
            assert wait(pid) == 7

    asyncio.run(scenario())


def test_a_new_process_that_cannot_be_started_costs_nobody_else_his_life(start: Start) -> None:
    """Without a new fork server the process id of the dead one is not used again: it may be another process."""

    async def scenario() -> None:
        forks = start(load, ["/no/such/program"])
        channel, seen = await copy(forks)
        channel.close()
        assert wait(seen["pid"]) == 7
        first, killed = seen["maker"], []
        with pytest.MonkeyPatch.context() as patched:
            kill = os.kill

            def recorded(pid: int, number: int) -> None:
                killed.append((pid, number))
                kill(pid, number)

            patched.setattr(os, "kill", recorded)
            kill(first, signal.SIGKILL)
            for _ in range(2):
                with pytest.raises(FileNotFoundError):
                    await forks.fork([])
        assert killed == [(first, signal.SIGCONT), (first, signal.SIGKILL)]

    asyncio.run(scenario())


def test_orphans_are_waited_for_and_copies_left_to_who_made_them(start: Start) -> None:
    """An orphan that the fork server inherits, as the first process of a container does, is reaped."""

    async def scenario() -> None:
        with closing(ForkServer(load, COMMAND)) as forks:
            channel, seen = await copy(forks)
            channel.close()
            await_end(seen["pid"])
            orphan = make_orphan()
            await_end(orphan)
            forks.reap_orphans()
            assert os.waitstatus_to_exitcode(forks.reap(seen["pid"])) == 7
            os.kill(seen["maker"], signal.SIGKILL)
            await_end(seen["maker"])
            forks.reap_orphans()
            with pytest.raises(ChildProcessError):
                wait(-1)

    def load_apart() -> RunCopy:  # not in this process, whose other children belong to other tests
        def run(_descriptors: list[int]) -> int:
            asyncio.run(scenario())
            return 0

        return run

    async def outer() -> int:
        return wait(await start(load_apart).fork([]))

    assert asyncio.run(outer()) == 0


def test_a_program_that_cannot_be_loaded_is_an_error(start: Start) -> None:
    """A fork server that ends while it loads is an OSError for the caller, not a wait or a loop."""

    def fail() -> RunCopy:
        raise SystemExit(1)

    async def scenario() -> None:
        with pytest.raises(OSError, match="ends at once") as caught:
            await start(fail, [sys.executable, "-c", "raise SystemExit(1)"]).fork([])
        assert caught.value.errno == errno.ECHILD

    asyncio.run(scenario())


def test_an_exception_in_a_copy_ends_it(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    """An exception in a copy goes to stderr and ends it with status 1: nothing runs on in the frames below."""

    def fail() -> RunCopy:
        def run(_descriptors: list[int]) -> int:
            raise ValueError("a defect")

        return run

    async def scenario() -> None:
        pid = await start(fail).fork([])
        assert wait(pid) == 1

    asyncio.run(scenario())
    assert "ValueError: a defect" in capfd.readouterr().err
