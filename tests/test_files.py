"""Writing: whole or not at all, and one sentence when the disk says no."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from vesalius.errors import OutputError
from vesalius.files import prepare_folder, replacing, to_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_with_its_folders_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "新" / "é" / "a.txt"
    for text in ("first", "血管\n"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(path.parent) == ["a.txt"]


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"名": 1.5})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "名" in text
    assert json.loads(text) == {"名": 1.5}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert to_json({"a": [1]}) == '{"a": [1]}'


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failed_folder_vanishes(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "bundle") as temporary:
            temporary.mkdir()
            (temporary / "part").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with replacing(tmp_path / "bundle") as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert names(tmp_path / "bundle") == ["new"]


def test_a_full_disk_is_an_output_error_that_names_the_path(tmp_path: Path) -> None:
    def fill() -> None:
        with replacing(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        fill()
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/a\.txt: cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(OutputError, match="file: cannot be written"):
        prepare_folder(tmp_path / "file")


def test_a_read_only_folder_is_an_output_error(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        (folder / "probe").touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may write to read-only folders (root)")
    with pytest.raises(OutputError, match="Permission denied"):
        write_text(folder / "a.txt", "x")
    with pytest.raises(OutputError, match="Permission denied"):
        prepare_folder(folder)


def test_a_file_system_that_takes_no_file_is_an_output_error() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("/proc is a Linux file system")
    with pytest.raises(OutputError, match=r"/proc/vesalius\.txt: cannot be written"):
        write_text(Path("/proc/vesalius.txt"), "x")
    with pytest.raises(OutputError, match="/proc/vesalius: cannot be written"):
        prepare_folder(Path("/proc/vesalius"))


def test_preparing_a_folder_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    assert names(prepare_folder(tmp_path / "a" / "b")) == []
