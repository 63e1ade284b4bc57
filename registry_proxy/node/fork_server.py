"""A process that has loaded the code of a worker, serves nothing, and makes a copy of itself on command.

A copy is there in milliseconds and shares the memory of the code with the others, where a new Python that loads the
code takes most of a second of a processor. The supervisor cannot copy itself as well: it has a loop and a thread.

The copy is made by way of a process in between, which ends at once: then the kernel makes the supervisor, as the
nearest "subreaper" (prctl(2)), the parent of the copy. So it can wait for it, and takes it along when it ends.
"""

import asyncio
import contextlib
import ctypes
import errno
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_MAX_DESCRIPTORS: Final = 253  # SCM_MAX_FD of the kernel
_PATIENCE_SECONDS: Final = 60.0
_ENDS: Final = "the process that makes the workers ends at once"
_SILENT: Final = f"the process that makes the workers has not answered for {_PATIENCE_SECONDS:g} s"
_libc = ctypes.CDLL(None, use_errno=True)

RunCopy = Callable[[list[int]], int]
"""What a copy does with the descriptors that it was given; returns its exit status."""


@dataclass(eq=False)
class _Maker:
    """A process that makes copies, and the socket to it; ``pid`` is 0 once it has been waited for."""

    control: socket.socket
    pid: int

    async def exchange(self, command: bytes, descriptors: Sequence[int] = ()) -> bytes:
        """Return the answer to an command, empty when the process has ended. Raises TimeoutError."""
        if self.pid:
            os.kill(self.pid, signal.SIGCONT)  # one that somebody has stopped would not answer
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    socket.send_fds(self.control, [command], descriptors)
                    return await asyncio.get_running_loop().sock_recv(self.control, 32)
            except ConnectionError:
                pass
            except TimeoutError:
                raise TimeoutError(errno.ETIMEDOUT, _SILENT) from None
        return b""

    def end(self) -> None:
        """End it, if it has not been waited for; the copies go on."""
        self.control.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0  # it may soon be the number of somebody else


class ForkServer:
    """Makes copies for the process that it is made in, which becomes their parent.

    Its first process is itself a copy, which spares loading again what is there: it has to be made before that process
    has a loop, threads or listeners. Those that follow are new Pythons.

    Args:
        load: called in the first process; loads everything and returns what the copies run.
        command: starts a new Python that calls ``serve_forks`` with the two arguments that are added.
    """

    def __init__(self, load: Callable[[], RunCopy], command: Sequence[str]) -> None:
        self._command = command
        self._asking = asyncio.Lock()
        self._copies: set[int] = set()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the parent ignores it, no child can be waited for
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        control, theirs = _socketpair()
        with theirs:
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _leave_with(lambda: serve_forks(load, theirs.detach(), parent))
        self._maker = _Maker(control, pid)

    async def renew(self) -> None:
        """Have the next copies made by a new process, from the code as it is installed now.

        Raises:
            OSError: it cannot be started, or cannot load; the one before goes on.
        """
        async with self._asking:  # one copy at a time
            renewed = self._start()
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(renewed.end)
                if not await renewed.exchange(b"load"):
                    raise OSError(errno.ECHILD, _ENDS)
                on_failure.pop_all()
            self._maker.end()
            self._maker = renewed

    def _restart(self) -> None:
        self._maker.end()
        self._maker = self._start()

    def _start(self) -> _Maker:
        control, theirs = _socketpair()
        with theirs, contextlib.ExitStack() as on_failure:
            on_failure.enter_context(control)
            theirs.set_inheritable(True)
            arguments = [*self._command, str(theirs.fileno()), str(os.getpid())]
            maker = _Maker(control, os.posix_spawn(arguments[0], arguments, os.environ))
            on_failure.pop_all()
        return maker

    async def fork(self, descriptors: Sequence[int]) -> int:
        """Make a copy that has some descriptors, under other numbers; return its process id.

        Raises:
            OSError: there is no memory or no process left, or it cannot load what the copies run.
        """
        async with self._asking:
            answer = await self._ask(descriptors)
            if not answer:  # somebody has killed it
                self._restart()
                answer = await self._ask(descriptors)
        if not answer:
            raise OSError(errno.ECHILD, _ENDS)
        if (number := int(answer)) < 0:
            raise OSError(-number, os.strerror(-number))
        self._copies.add(number)
        return number

    def reap(self, pid: int) -> int:
        """Return the status of a copy once it has ended (waitpid(2))."""
        self._copies.discard(pid)
        return os.waitpid(pid, 0)[1]

    def reap_orphans(self) -> None:
        """Reap children that have ended and belong to this process only because their own parent ended first.

        A "subreaper" has this duty, as the first process of a container has, or they stay zombies. Call it at each
        SIGCHLD, and after a copy was waited for: an ended copy that nobody waited for hides the ones behind it.
        """
        with contextlib.suppress(ChildProcessError):
            while not self._asking.locked():  # else it might be a copy whose start was not answered yet
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in self._copies:
                    return
                if ended.si_pid == self._maker.pid:
                    self._maker.pid = 0
                os.waitpid(ended.si_pid, 0)

    async def _ask(self, descriptors: Sequence[int]) -> bytes:
        try:
            return await self._maker.exchange(b"fork", descriptors)
        except BaseException:  # its answer may come later: who asks next would take it for his
            self._restart()
            raise

    def close(self) -> None:
        """End its process; the copies go on."""
        self._maker.end()


def _socketpair() -> tuple[socket.socket, socket.socket]:
    """Return our end, for a loop, and the one of a new process."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(0)
    return control, theirs


def name_process(name: str) -> None:
    """Say what this process is, in up to 15 characters, to ``ps -o comm`` and ``top``."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def serve_forks(load: Callable[[], RunCopy], descriptor: int, supervisor: int) -> int:
    """Make copies until the supervisor is gone; return the exit status of this process.

    Args:
        load: see ``ForkServer``.
        descriptor: of the socket to the supervisor.
        supervisor: its process id.
    """
    with socket.socket(fileno=descriptor) as control:
        name_process("regproxy-forker")
        _end_with(supervisor)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for ignored in (signal.SIGINT, signal.SIGHUP):  # sent by a terminal to the whole group: the supervisor decides
            signal.signal(ignored, signal.SIG_IGN)
        _keep_only(descriptor)
        gc.disable()  # while nearly all that is made stays: loading takes a fifth less
        run = load()
        gc.enable()
        gc.collect()
        gc.freeze()  # else the first collection of every copy would write to, and so copy, all that is shared
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, 16, _MAX_DESCRIPTORS)
            if not message:
                return 0
            if message != b"fork":  # it only asks whether all is loaded
                control.send(b"0")
                continue
            try:
                _fork_away(control, supervisor, run, descriptors)
            except OSError as error:
                control.send(b"%d" % -(error.errno or errno.EAGAIN))
            for passed_on in descriptors:
                os.close(passed_on)


def _fork_away(control: socket.socket, supervisor: int, run: RunCopy, descriptors: list[int]) -> None:
    """Make a copy whose parent is the supervisor, tell it the process id (or -errno), and then let the copy run.

    A copy that the supervisor does not know, because this process was killed meanwhile, ends: it would share the
    channel of the next one.
    """
    with _pipe() as (report, reporting), _pipe() as (allowed, allowing):
        between = os.fork()
        if between == 0:
            try:
                number = os.fork()
            except OSError as error:
                number = -(error.errno or errno.EAGAIN)
            if number == 0:
                for used in (control, report, reporting, allowing):
                    used.close()
                _leave_with(lambda: _run_copy(allowed, supervisor, run, descriptors))
            reporting.write(b"%d" % number)
            os._exit(0)
        reporting.close()
        os.waitpid(between, 0)
        if not (answer := report.read()):  # somebody has killed the one in between
            raise OSError(errno.ECHILD, "")
        control.send(answer)
        with contextlib.suppress(BrokenPipeError):  # there is no copy, or it was killed
            allowing.write(b"1")


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", 0) as output, os.fdopen(writing, "wb", 0) as entry:
        yield output, entry


def _run_copy(allowed: IO[bytes], supervisor: int, run: RunCopy, descriptors: list[int]) -> int:
    with allowed:
        if not allowed.read(1):
            return 1
    _end_with(supervisor)
    return run(descriptors)


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        raise SystemExit(1)


def _keep_only(control: int) -> None:
    """Close what was inherited, other than output and the socket to the supervisor."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != control:
            with contextlib.suppress(OSError):  # the one of the listing
                os.close(descriptor)
    with open(os.devnull, encoding="ascii") as nothing:
        os.dup2(nothing.fileno(), 0)


def _leave_with(run: Callable[[], int]) -> NoReturn:
    """End this process with what ``run`` returns; the frames of the original below are never returned to."""
    status = 1
    try:
        status = run()
    except SystemExit as end:
        if isinstance(end.code, str):
            os.write(2, f"{end.code}\n".encode())
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - nothing may reach the frames below
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
