"""Robots: machines that log in with secrets."""

import ipaddress
from collections.abc import Sequence
from dataclasses import replace

from registry_proxy.access.faults import InvalidError, time_faults
from registry_proxy.access.records import Robot, robot_of
from registry_proxy.access.subject import NAME_FAULT, is_name, robot_subject
from registry_proxy.directory.removed import Removed, held_by
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.directory.voiding import next_generation
from registry_proxy.ports.store import Store, Table


class Robots(Records[Robot]):
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.ROBOTS, "robot", robot_of)

    async def put(
        self, name: str, expires_at: float | None, networks: Sequence[str], *, expect: int | None = None
    ) -> tuple[Robot, bool]:
        """Make or replace a robot; return it, and whether it is new. Its secrets stay.

        Args:
            name: without the ``robot$`` of its login.
            expires_at: Unix seconds; None for never.
            networks: addresses or networks its logins may come from; none for any.
            expect: see ``Directory``.

        Raises:
            InvalidError: with every fault of the input.
            RevisionConflictError: see the class.
        """
        faults = [] if is_name(name) else [("name", NAME_FAULT)]
        faults += time_faults(expires_at)
        faults += [("networks", fault) for network in networks if (fault := _network_fault(network)) is not None]
        if faults:
            raise InvalidError(faults)
        robot = Robot(name, expires_at, tuple(networks))

        async def make(current: Robot | None) -> Revised[bool]:
            return Revised(robot.stored(), current is None)

        is_new, revision = await self._revise(name, make, expect=expect)
        return replace(robot, revision=revision), is_new

    async def delete(self, name: str, *, expect: int | None = None) -> Removed:
        """Delete a robot with its secrets and grants, and revoke its tokens; return its belongings.

        Raises:
            NotFoundError, RevisionConflictError.
        """
        subject = robot_subject(name)

        async def make(_: Robot | None) -> Revised[Removed]:
            removed = await held_by(self._store, subject)
            return Revised(None, removed, [await next_generation(self._store, subject), *removed.changes()])

        removed, _ = await self._revise(name, make, expect=expect, must_exist=True)
        return removed


def _network_fault(text: str) -> str | None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return f"{text[:100]!r}: expected an address or network without host bits, such as 10.0.0.0/8"
    return None
