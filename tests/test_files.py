"""Files are written whole or not at all, and read only as far as a stranger's can be trusted."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cnnlab.errors import DamagedError
from cnnlab.files import (
    csv_cell,
    flatten,
    printable,
    read_bytes,
    read_csv,
    read_json,
    read_yaml,
    replacing,
    write_bytes,
    write_json,
    write_text,
)

WRITER = """
import sys, time
from pathlib import Path
from cnnlab.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    print(flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "x") as file:
        file.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert names(tmp_path) == ["x"]
    assert read_bytes(tmp_path / "x") == b"old"


@pytest.mark.parametrize("name", ["x.json", "n" * 255, "ä" * 127, "[a]*?", "a\nb"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path, name):
    path = tmp_path / name
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    writers[0].kill()
    writers[0].wait()
    assert len(names(tmp_path)) == 2
    write_bytes(path, b"whole")
    assert len(names(tmp_path)) == 2, "what is being written stays"
    writers[1].send_signal(signal.SIGINT)
    writers[1].wait()
    assert names(tmp_path) == [name]
    assert path.read_bytes() == b"whole"
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()


def test_of_many_that_write_a_new_file_at_once_one_does(tmp_path):
    together = threading.Barrier(8)
    done = []

    def write(number: int) -> None:
        with replacing(tmp_path / "x", overwrite=False, durable=True) as file:
            file.write(str(number).encode())
            together.wait()
        done.append(number)

    def attempt(number: int) -> None:
        with contextlib.suppress(FileExistsError):
            write(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / "x").read_text()] == [str(number) for number in done]
    assert names(tmp_path) == ["x"]


def test_a_link_or_hard_link_laid_where_the_temporary_file_was_expected_is_not_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.1-00000000.part").symlink_to(outside)
    (folder / ".run.json.2-00000000.part").hardlink_to(outside)
    (folder / "run.json").hardlink_to(outside)
    write_json(folder / "run.json", {})
    assert outside.read_text() == "mine"
    assert read_json(folder / "run.json") == {}


@pytest.mark.parametrize("read", [read_json, read_csv, read_yaml])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket", "loop", "large"])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path, read, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "loop":
        path.symlink_to(tmp_path / "y")
        (tmp_path / "y").symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(DamagedError, match=str(path)):
        read(path)


def test_json_has_no_infinity(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("inf"), "b": 1.5, "c": {"d": [float("nan"), (1, 2.5)]}})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": 1.5, "c": {"d": [None, [1, 2.5]]}}
    assert names(tmp_path) == ["x.json"]


def test_text_that_no_encoding_holds_is_escaped(tmp_path):
    write_text(tmp_path / "x", "a\udcffb")
    assert (tmp_path / "x").read_text() == r"a\udcffb"


def test_a_row_with_too_few_or_too_many_cells_is_damaged(tmp_path):
    path = tmp_path / "x.csv"
    for text, rows in (("", []), ("a,b\n", []), ('a,b\n1,"x\ny"\n', [{"a": "1", "b": "x\ny"}])):
        path.write_text(text)
        assert read_csv(path) == rows
    for text in ("a,b\n1\n", "a\n1,2\n", 'a\n"1'):
        path.write_text(text)
        with pytest.raises(DamagedError, match=r"x\.csv"):
            read_csv(path)


def test_a_config_is_flat_under_dotted_keys():
    config = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, []], 3: None}
    assert list(flatten(config)) == [("a.b", 1), ("a.c", {}), ("d", [{"e": 2}, []]), ("3", None)]
    assert [key for key, _ in flatten(config, sections=True)] == ["a", "a.b", "a.c", "d", "3"]
    assert list(flatten(config, lists=True)) == [("a.b", 1), ("a.c", {}), ("d.0.e", 2), ("d.1", []), ("3", None)]


def test_a_printed_text_commands_no_terminal():
    hostile = "\x1b]0;title\x07\x1b[31mred\x9b1m\u202eevil\r\b\udcff"
    assert not set(printable(hostile)) & set("\x1b\x07\x9b\u202e\r\b\udcff")
    assert printable("über 猫 🐱\n\tok") == "über 猫 🐱\n\tok"


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@x", "\t=1", "\r=1", "\x1b[31m"])
def test_a_cell_is_neither_a_formula_nor_a_command(text, tmp_path):
    cell = csv_cell(text)
    assert cell[0] not in "=+-@\t\r\n\x1b"
    assert cell.isprintable()
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerow([csv_cell(1.5), csv_cell(-1), csv_cell(None)])
    assert (tmp_path / "x.csv").read_text() == "1.5,-1,\n"
