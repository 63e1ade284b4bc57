"""Trust in the HEADs of a replica, and the cases in which a GET decides (docs/decisions/35)."""

from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Repository
from registry_proxy.replica.failure import ReplicaFailedError

_REMEMBERED = 1000
USELESS_SECONDS = 600.0
"""Time for which a repository is asked by GET alone, once its HEAD was refused and the GET that followed was not."""

BELIEVED_SECONDS = 24 * 3600.0
"""Time for which the 404 to a HEAD is believed in a repository that took a push from us."""

DISBELIEVED_SECONDS = 3600.0
"""Time for which no 404 to a HEAD is believed, once a GET has contradicted one."""


class Heads:
    """Experience with HEAD and GET of one kind of content at a replica, by repository.

    Registries refuse the HEAD of what they give to a GET, for good, or answer 404 until they have fetched it from a
    registry of their own. One that takes pushes must answer HEAD rightly: clients ask by it which blobs to send.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._useless: TTLCache[Repository, None] = TTLCache(_REMEMBERED, USELESS_SECONDS, clock)
        self._believed: TTLCache[Repository, None] = TTLCache(_REMEMBERED, BELIEVED_SECONDS, clock)
        self._disbelieved_until = float("-inf")

    async def describe(
        self,
        repository: Repository,
        head: Callable[[], Awaitable[Descriptor | None]],
        get: Callable[[], Awaitable[Descriptor]],
    ) -> Descriptor:
        """Return what a HEAD says of a content, else what a GET does: what GET can give must not depend on HEAD.

        Args:
            repository: that holds it.
            head: asks by HEAD; None where the answer says too little.
            get: asks by GET, and stops after the headers.

        Raises:
            RegistryError, ReplicaFailedError: theirs; of the HEAD only what a GET would meet as well.
            UpstreamLimitError: it asks us to wait.
        """
        if not self.are_useful(repository):
            return await get()
        was_absent = False
        try:
            if (descriptor := await head()) is not None:
                return descriptor
        except (RegistryError, ReplicaFailedError) as error:
            was_absent = isinstance(error, RegistryError) and error.status == 404
            if _is_final(error) or (was_absent and self.are_believed(repository)):
                raise
        descriptor = await get()
        self.contradicted(repository, was_absent=was_absent)
        return descriptor

    def are_useful(self, repository: Repository) -> bool:
        """Tell whether a HEAD is worth sending."""
        return repository not in self._useless

    def are_believed(self, repository: Repository) -> bool:
        """Tell whether a 404 to a HEAD is the truth, also for GET."""
        return self._disbelieved_until <= self._clock() and repository in self._believed

    def took_push(self, repository: Repository) -> None:
        """Note that it took content from us."""
        self._believed[repository] = None

    def contradicted(self, repository: Repository, *, was_absent: bool) -> None:
        """Note that a GET gave what the HEAD before it had refused, or, with ``was_absent``, had answered 404 to."""
        if was_absent:
            self._disbelieved_until = self._clock() + DISBELIEVED_SECONDS
        else:
            self._useless[repository] = None


def _is_final(error: Exception) -> bool:
    """Tell whether a GET would only wait as long as this HEAD did; what fails at once may be tried by GET."""
    return isinstance(error, ReplicaFailedError) and error.outcome == "timeout"
