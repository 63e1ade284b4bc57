"""A page is shared by all processes that map its file, and one writer at a time may lock it."""

from pathlib import Path

from registry_proxy.files.lock import open_locked
from registry_proxy.files.shared_page import SharedPage


def test_one_writer_at_a_time_over_threads_and_processes(tmp_path: Path) -> None:
    """Neither another page of the file, as in another process, nor a thread can lock it meanwhile."""
    path = str(tmp_path / "page")
    page = SharedPage.at(path)
    with page.locked():
        assert open_locked(path) is None
        assert not page._lock.acquire(blocking=False)
    with page.locked():
        pass
    page.close()


def test_a_written_value_is_read_by_all(tmp_path: Path) -> None:
    """One page reads the writes of another one of the same file; a page in memory is separate."""
    path = str(tmp_path / "page")
    first, second, alone = SharedPage.at(path), SharedPage.at(path), SharedPage.in_memory()
    first.write(10, b"abc")
    alone.write(10, b"xyz")
    assert second.memory[9:14] == b"\0abc\0"
    for page in (first, second, alone, first):
        page.close()
