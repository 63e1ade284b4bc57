"""Listening sockets, and who holds a port when it is taken. The standard library only: `make run` uses it too."""

import contextlib
import ctypes
import errno
import glob
import os
import socket
import struct
from collections.abc import Iterator

_SO_ATTACH_FILTER = 26
# Classic BPF: ldb [13] (the flags of the TCP header); jset #2 (SYN) -> ret 0 (drop), else ret all.
_DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_LISTEN_STATE = "0A"
_BACKLOG = 4096


class PortTakenError(Exception):
    """Somebody else listens on the address; the text says who."""


def bind_listeners(host: str, port: int, count: int, *, beside_own: bool = False) -> list[socket.socket]:
    """Return ``count`` sockets that listen on one address: the kernel spreads connections over them.

    Args:
        host: an IP address.
        port: of TCP.
        count: how many.
        beside_own: this process listens there already. The sockets do not listen until who serves them says so.

    Raises:
        PortTakenError: the port is taken.
        OSError: the address is not one of this machine, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets: list[socket.socket] = []
    try:
        if not beside_own:
            _refuse_taken(family, host, port)
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            if not beside_own:
                listener.listen(_BACKLOG)
            listener.settimeout(0)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def refuse_new_connections(listener: socket.socket) -> None:
    """Take no further connection on a socket that is about to be closed; those that are under way arrive.

    Closing alone would reset the connections that the kernel has accepted and this process has not. A new client hears
    nothing and tries again after a second: by then the socket is closed, or another one has the address.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
    with contextlib.suppress(OSError):  # it is a courtesy
        program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _refuse_taken(family: int, host: str, port: int) -> None:
    """Raise when anybody listens there: with SO_REUSEPORT alone, a second service of ours would share the port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            holder = describe_holder(port)
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            message = f"{address} is taken by {holder or 'a process that this user may not see'}"
            raise PortTakenError(message) from None


def describe_holder(port: int) -> str | None:
    """Return ``process 123 (nginx -g …)`` for the service that listens on a TCP port of this machine; None for none.

    Of a service with several processes it is the first one: to end a worker would only bring the next one.
    """
    inodes = {f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening_inodes(table, port)}
    holders: dict[str, None] = {}
    for link in glob.iglob("/proc/[0-9]*/fd/*") if inodes else ():
        with contextlib.suppress(OSError):  # the process or its descriptor is gone, or not ours to see
            if os.readlink(link) in inodes:
                holders[link.split("/")[2]] = None
    for pid in holders:
        with contextlib.suppress(OSError):
            if holders.keys().isdisjoint(_ancestors(pid)):
                return _describe_process(pid)
    return None


def _ancestors(pid: str) -> Iterator[str]:
    """Yield the parent of a process, its parent, and so on."""
    while pid != "0":
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            pid = file.read().rpartition(")")[2].split()[1]
        yield pid


def _listening_inodes(table: str, port: int) -> list[str]:
    try:
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN_STATE and int(row[1].rpartition(":")[2], 16) == port]


def _describe_process(pid: str) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        arguments = file.read().rstrip(b"\0").split(b"\0")
    command = b" ".join(arguments).decode(errors="replace")
    return f"process {pid} ({command[:100]})"
