"""Files are written and moved whole, at whatever point the process ends."""

import errno
import os
from pathlib import Path

import pytest

from registry_proxy.files.atomic import move_file, write_file, write_new_file


def on_another_file_system(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Make every rename from one directory into another fail, as between two file systems."""
    rename = os.rename

    def guarded(source: str, target: str) -> None:
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", guarded)
    directory.mkdir()


@pytest.mark.parametrize("is_near", [True, False], ids=["same file system", "another one"])
def test_a_file_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_near: bool) -> None:  # noqa: FBT001 - a parameter
    """The file is at the target, with its times and mode, and nowhere else; an existing target is kept."""
    target = tmp_path / "target"
    if is_near:
        target.mkdir()
    else:
        on_another_file_system(monkeypatch, target)
    source = tmp_path / "a"
    source.write_bytes(b"content")
    os.utime(source, ns=(1, 2))
    move_file(str(source), str(target / "a"))
    assert (target / "a").read_bytes() == b"content"
    assert (target / "a").stat().st_mtime_ns == 2
    source.write_bytes(b"content")  # as after a copy that ended before the removal of its source
    move_file(str(source), str(target / "a"))
    source.write_bytes(b"another")
    with pytest.raises(FileExistsError, match="differs from"):
        move_file(str(source), str(target / "a"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "a", "target"]


def test_a_copy_that_fails_leaves_the_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room at the target, nothing is left there, and the source is whole."""
    on_another_file_system(monkeypatch, tmp_path / "target")
    source = tmp_path / "a"
    source.write_bytes(b"content")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        move_file(str(source), str(tmp_path / "target" / "a"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
    assert source.read_bytes() == b"content"


def test_the_first_writer_wins(tmp_path: Path) -> None:
    """The existing file stays, and no temporary file is left."""
    path = tmp_path / "id"
    for content in (b"first", b"second"):
        write_new_file(str(path), content)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["id"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """The new content replaces the old one, readable by its owner alone, and no temporary file is left."""
    path = tmp_path / "key"
    path.write_bytes(b"old")
    write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]
