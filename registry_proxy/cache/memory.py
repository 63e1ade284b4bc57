"""Small contents in memory, within a bound."""

from collections import OrderedDict

from registry_proxy.protocol.reference import Digest

_ENTRY_OVERHEAD_BYTES = 512


class SmallContents:
    """The most recently used small contents. The content of a digest never changes, so nothing here can be wrong.

    Args:
        max_size_bytes: of all contents together, counting what Python needs for each.
    """

    def __init__(self, max_size_bytes: int) -> None:
        self._max_size_bytes = max_size_bytes
        self._size_bytes = 0
        self._contents: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        content = self._contents.get(digest)
        if content is not None:
            self._contents.move_to_end(digest)
        return content

    def put(self, digest: Digest, content: bytes) -> None:
        self.drop(digest)
        self._contents[digest] = content
        self._size_bytes += len(content) + _ENTRY_OVERHEAD_BYTES
        while self._size_bytes > self._max_size_bytes:
            _, oldest = self._contents.popitem(last=False)
            self._size_bytes -= len(oldest) + _ENTRY_OVERHEAD_BYTES

    def drop(self, digest: Digest) -> None:
        content = self._contents.pop(digest, None)
        if content is not None:
            self._size_bytes -= len(content) + _ENTRY_OVERHEAD_BYTES

    def clear(self) -> None:
        self._contents.clear()
        self._size_bytes = 0
