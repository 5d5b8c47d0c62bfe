"""Atomic writes, and errors of output folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from tests.codes import raises_code

from vesalius.errors import OutputError, SettingError
from vesalius.files import (
    check_new,
    check_outside,
    check_replaceable,
    prepare_folder,
    replacing,
    to_json,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_text_makes_parent_folders_and_replaces_old_text(tmp_path: Path) -> None:
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
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
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

    with raises_code(OutputError, "write_failed", "a.bin", "No space left on device"):
        fill()
    assert names(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with raises_code(OutputError, "write_failed", "file/a.txt"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with raises_code(OutputError, "write_failed", "file"):
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
    with raises_code(OutputError, "write_failed", "Permission denied"):
        write_text(folder / "a.txt", "x")
    with raises_code(OutputError, "write_failed", "Permission denied"):
        prepare_folder(folder)


def test_a_file_system_that_takes_no_file_is_an_output_error() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("/proc is a Linux file system")
    with raises_code(OutputError, "write_failed", "/proc/vesalius.txt"):
        write_text(Path("/proc/vesalius.txt"), "x")
    with raises_code(OutputError, "write_failed", "/proc/vesalius"):
        prepare_folder(Path("/proc/vesalius"))


def test_preparing_a_folder_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    assert names(prepare_folder(tmp_path / "a" / "b")) == []


def test_a_new_output_is_absent_or_an_empty_folder(tmp_path: Path) -> None:
    check_new(tmp_path / "absent")
    check_new(tmp_path)
    (tmp_path / "file").touch()
    for taken in (tmp_path, tmp_path / "file"):
        with raises_code(OutputError, "output_exists", str(taken)) as caught:
            check_new(taken)
        assert caught.value.path == str(taken)


def test_an_output_folder_is_replaced_only_if_it_is_an_earlier_result(tmp_path: Path) -> None:
    def check() -> None:
        check_replaceable(tmp_path, "report", ("report.html", "report.json"), "report.json")

    check()
    (tmp_path / "report.html").touch()
    with raises_code(OutputError, "not_replaceable", "report.json"):
        check()
    (tmp_path / "report.json").touch()
    (tmp_path / ".DS_Store").touch()
    check()
    (tmp_path / "thesis.txt").touch()
    with raises_code(OutputError, "not_replaceable", "thesis.txt"):
        check()
    with raises_code(OutputError, "not_replaceable", "thesis.txt"):
        check_replaceable(tmp_path / "thesis.txt", "report", (), "report.json")


def test_a_result_is_written_neither_into_its_data_nor_around_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    check_outside(tmp_path / "out", data)
    for out in (data, data / "out", tmp_path):
        with raises_code(SettingError, "output_inside_data"):
            check_outside(out, data)
