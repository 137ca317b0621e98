import gzip
import hashlib
import io
import json
import resource
import shlex
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cnnlab.data import archive, cifar
from cnnlab.errors import DataError, MachineError, UnsafeError

FOLDER = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}


def pictures(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def records(images, *labels):
    """Lay out pictures as the official files do: labels, then a red, a green and a blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([np.array(labels, np.uint8).T, planes], axis=1).tobytes()


def official(name):
    """Return the members of a small archive in the official binary format."""
    if name == "cifar10":
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        files = {
            f"data_batch_{number}.bin": records(pictures(number, 20), np.arange(20) % 10) for number in range(1, 6)
        }
        # The official list of names ends with an empty line.
        files |= {
            "test_batch.bin": records(pictures(0, 10), range(10)),
            "batches.meta.txt": "".join(f"{line}\n" for line in [*names, ""]).encode(),
            "readme.html": b"<html>",
        }
    else:
        files = {
            "train.bin": records(pictures(1, 100), np.arange(100) // 5, np.arange(100)),
            "test.bin": records(pictures(0, 100), np.arange(100) // 5, np.arange(100)[::-1]),
            "fine_label_names.txt": "".join(f"fine_{label}\n" for label in range(100)).encode(),
            "coarse_label_names.txt": "".join(f"coarse_{label}\n" for label in range(20)).encode(),
        }
    return {f"{FOLDER[name]}/{file}": content for file, content in files.items()}


def tarred(members, mode="w:gz"):
    """Return a tar of members, each given by its content or by a TarInfo without one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for attribute, value in content.items():
                    setattr(info, attribute, value)
                file.addfile(info)
            else:
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def convert(tmp_path, name, content):
    tar = tmp_path / "archive.tar.gz"
    tar.write_bytes(content)
    cifar.convert(name, tar, tmp_path / "data.npz")
    return archive.read(tmp_path / "data.npz")


def test_cifar10_archive_becomes_nhwc_images_in_its_order(tmp_path):
    members = official("cifar10")
    # In another order, as a tar may have it.
    data = convert(tmp_path, "cifar10", tarred(dict(reversed(members.items()))))
    np.testing.assert_array_equal(data.images["train"], np.concatenate([pictures(n, 20) for n in range(1, 6)]))
    np.testing.assert_array_equal(data.images["test"], pictures(0, 10))
    assert data.targets["train"].tolist() == list(range(10)) * 10
    assert data.targets["test"].tolist() == list(range(10))
    assert data.classes[:2] == ("airplane", "automobile")
    assert data.num_classes == 10


def test_cifar100_archive_gives_the_fine_labels_and_their_names(tmp_path):
    data = convert(tmp_path, "cifar100", tarred(official("cifar100")))
    np.testing.assert_array_equal(data.images["train"], pictures(1, 100))
    assert data.targets["train"].tolist() == list(range(100))
    assert data.targets["test"].tolist() == list(range(99, -1, -1))
    assert data.classes == tuple(f"fine_{label}" for label in range(100))


def test_more_records_than_are_read_at_once_keep_their_order(tmp_path):
    images = pictures(5, 2500)
    members = official("cifar100") | {f"{FOLDER['cifar100']}/train.bin": records(images, [0] * 2500, [7, 8] * 1250)}
    np.testing.assert_array_equal(convert(tmp_path, "cifar100", tarred(members)).images["train"], images)


BATCH = "cifar-10-batches-bin/data_batch_1.bin"
HOSTILE = {
    "symbolic link": {BATCH: {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}},
    "hard link": {BATCH: {"type": tarfile.LNKTYPE, "linkname": "../outside"}},
    "device": {BATCH: {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}},
    "fifo": {BATCH: {"type": tarfile.FIFOTYPE}},
    "absolute name": {"/tmp/data_batch_1.bin": b"outside"},
    "parent folder": {"cifar-10-batches-bin/../../outside": b"outside"},
    "link beside the wanted": {"cifar-10-batches-bin/latest": {"type": tarfile.SYMTYPE, "linkname": "/"}},
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_tar_is_refused_and_nothing_is_written(tmp_path, fault):
    with pytest.raises(UnsafeError):
        convert(tmp_path, "cifar10", tarred(official("cifar10") | HOSTILE[fault]))
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [2**44, -512])
def test_tar_header_that_claims_an_absurd_size_is_refused(tmp_path, kind, size):
    info = tarfile.TarInfo(BATCH)
    info.type, info.size = kind, size
    with pytest.raises(UnsafeError, match="claims"):
        convert(tmp_path, "cifar10", gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("data_batch_3.bin", bytes(3073 * 2 + 1), "records of 3073 bytes, got 6147 bytes"),
        ("data_batch_3.bin", b"", "got 0 bytes"),
        ("data_batch_3.bin", {"type": tarfile.DIRTYPE}, "must be a file, got a folder"),
        ("test_batch.bin", records(pictures(0, 1), [77]), "from 0 to 9.*got 77"),
        ("batches.meta.txt", b"one\ntwo\n", "2 classes"),
        ("batches.meta.txt", b"\xff\xfe\n", "is damaged"),
    ],
)
def test_wrong_content_is_bad_data(tmp_path, member, content, message):
    with pytest.raises(DataError, match=message):
        convert(tmp_path, "cifar10", tarred(official("cifar10") | {f"{FOLDER['cifar10']}/{member}": content}))
    assert not (tmp_path / "data.npz").exists()


def test_archive_without_a_part_names_it(tmp_path):
    members = official("cifar10")
    del members[BATCH]
    with pytest.raises(DataError, match=f"lacks {BATCH}: it is not the binary version of cifar10"):
        convert(tmp_path, "cifar10", tarred(members))


def test_truncated_or_flipped_archive_is_bad_data_or_changes_nothing(tmp_path):
    whole = tarred(official("cifar10"))
    right = convert(tmp_path, "cifar10", whole)
    rng = np.random.default_rng(0)
    for length in [*rng.integers(0, len(whole), 15)]:
        with pytest.raises(DataError):
            convert(tmp_path, "cifar10", whole[:length])
    for place in rng.integers(0, len(whole), 15):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        try:
            data = convert(tmp_path, "cifar10", bytes(damaged))
        except (DataError, UnsafeError):
            continue
        np.testing.assert_array_equal(data.images["train"], right.images["train"])


class Server(ThreadingHTTPServer):
    """An archive's server that can fail in the ways that servers fail."""

    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.kind = "application/x-gzip"
        self.cut_after = None  # bytes of a body after which the connection is dropped
        self.cuts_left = 10**6
        self.down = False
        self.ranges = True
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}/archive.tar.gz"
        self.md5 = hashlib.md5(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, content = self.server, self.server.content
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.down:
            return self.send_error(503)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(content) - start))
        # As some servers label a .tar.gz; whoever unpacks it then gets another checksum.
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        body = content[start:]
        if server.cut_after is not None and server.cuts_left > 0:
            server.cuts_left -= 1
            body = body[: server.cut_after]
        return self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(tarred(official("cifar10")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def npz(tmp_path):
    return tmp_path / "new folder" / "cifar10.npz"


def fetch(server, npz):
    return cifar.fetch("cifar10", npz, url=server.url, md5=server.md5)


def part(npz):
    return npz.with_name(f"{npz.name}.download") / "archive.tar.gz.part"


def beside(npz):
    return [path.name for path in npz.parent.iterdir()]


def test_fetched_archive_becomes_the_npz_and_is_removed(server, npz):
    assert fetch(server, npz) == npz
    assert archive.read(npz).num_classes == 10
    assert beside(npz) == ["cifar10.npz"]
    assert server.requests == [None]


def test_command_answers_programs_with_json_alone(server, npz):
    """As a person runs it, but for the address: on standard output is one value, whatever was logged or drawn."""
    code = f"""
import dataclasses, sys
from cnnlab.cli import app
from cnnlab.data import cifar
cifar.SOURCES["cifar10"] = dataclasses.replace(cifar.SOURCES["cifar10"], url={server.url!r}, md5={server.md5!r})
sys.argv[0] = "cnnlab"
app()
"""
    words = [sys.executable, "-c", code, "data", "fetch", "cifar10", str(npz), "--json"]
    for existed in (False, True):
        content = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
        assert shlex.split(content.pop("command")) == ["cnnlab", "train", "data=cifar10", f"data.path='{npz}'"]
        assert content == {"path": str(npz), "existed": existed}
    assert len(server.requests) == 1


def test_existing_file_is_never_fetched_again(server, npz):
    npz.parent.mkdir()
    npz.write_bytes(b"whatever the user has put here")
    assert fetch(server, npz) == npz
    assert server.requests == []
    assert npz.read_bytes() == b"whatever the user has put here"


def test_connection_that_breaks_is_taken_up_where_it_broke(server, npz):
    server.cut_after, server.cuts_left = 150_000, 2
    fetch(server, npz)
    assert archive.read(npz).num_classes == 10
    offsets = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.requests[1:]]
    assert len(offsets) == 2
    assert 0 < offsets[0] < offsets[1] < len(server.content)


def test_server_that_goes_away_leaves_a_part_that_the_next_try_completes(server, npz):
    part(npz).parent.mkdir(parents=True)
    part(npz).write_bytes(server.content[:100_000])
    server.down = True
    with pytest.raises(DataError, match="100,000 bytes that came") as caught:
        fetch(server, npz)
    for way_out in ("data.path=", "`cnnlab data fetch cifar10`", "experiment=quickstart"):
        assert way_out in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert beside(npz) == [part(npz).parent.name]
    assert part(npz).read_bytes() == server.content[:100_000]
    server.down = False
    fetch(server, npz)
    assert server.requests[-1] == "bytes=100000-"
    assert beside(npz) == ["cifar10.npz"]


def test_server_that_ignores_ranges_starts_again(server, npz):
    part(npz).parent.mkdir(parents=True)
    part(npz).write_bytes(b"\x1f\x8b of something else, or of the same")
    server.ranges = False
    fetch(server, npz)
    assert server.requests[-1].startswith("bytes=")
    assert archive.read(npz).num_classes == 10


@pytest.mark.parametrize("surplus", [b"", b"longer than the file"])
def test_part_that_was_whole_already_is_used_and_a_longer_one_replaced(server, npz, surplus):
    part(npz).parent.mkdir(parents=True)
    part(npz).write_bytes(server.content + surplus)
    fetch(server, npz)
    assert archive.read(npz).num_classes == 10
    assert len(server.requests) == (2 if surplus else 1)


def test_archive_that_was_whole_when_its_conversion_was_killed_is_not_fetched_again(server, npz):
    part(npz).parent.mkdir(parents=True)
    part(npz).with_suffix("").write_bytes(server.content)
    fetch(server, npz)
    assert server.requests == []
    assert beside(npz) == ["cifar10.npz"]


def test_html_page_is_named_and_does_not_cost_the_part(server, npz):
    genuine = server.content
    part(npz).parent.mkdir(parents=True)
    part(npz).write_bytes(genuine[:100_000])
    server.content, server.kind, server.ranges = b"<!DOCTYPE html><title>Log in</title>", "text/html", False
    with pytest.raises(DataError, match="must be a gzip archive, got text/html that starts with b'<!DOCTYPE html"):
        fetch(server, npz)
    assert part(npz).read_bytes() == genuine[:100_000]
    server.content, server.kind, server.ranges = genuine, "application/x-gzip", True
    fetch(server, npz)
    assert archive.read(npz).num_classes == 10


def test_wrong_checksum_is_named_and_the_next_try_starts_clean(server, npz):
    genuine = server.content
    server.content = genuine[:-1] + b"!"
    with pytest.raises(DataError, match=f"its md5 must be {server.md5}"):
        fetch(server, npz)
    assert beside(npz) == []
    server.content = genuine
    fetch(server, npz)
    assert server.requests == [None, None]
    assert beside(npz) == ["cifar10.npz"]


def test_an_archive_that_an_earlier_call_left_is_taken_by_its_checksum_only(server, npz):
    work = npz.with_name("cifar10.npz.download")
    for left, requests in ((server.content, []), (b"something else", [None])):
        work.mkdir(parents=True)
        (work / "archive.tar.gz").write_bytes(left)
        fetch(server, npz)
        assert server.requests == requests
        assert beside(npz) == ["cifar10.npz"]
        npz.unlink()


def test_archive_with_the_right_checksum_but_hostile_content_is_removed(server, npz):
    server.content = tarred(official("cifar10") | HOSTILE["symbolic link"])
    server.md5 = hashlib.md5(server.content).hexdigest()
    with pytest.raises(UnsafeError):
        fetch(server, npz)
    assert beside(npz) == []


def test_no_server_at_all_names_the_ways_out(npz):
    with pytest.raises(DataError, match="Connection refused") as caught:
        cifar.fetch("cifar10", npz, url="http://127.0.0.1:9/archive.tar.gz")
    assert f"copy the file to {npz}" in str(caught.value)


def test_server_that_falls_silent_is_given_up(server, npz, monkeypatch):
    monkeypatch.setattr(cifar, "_TIMEOUTS", (1, 0.2))
    monkeypatch.setattr(Handler, "do_GET", lambda self: time.sleep(1))
    with pytest.raises(DataError, match="timed out"):
        fetch(server, npz)


def test_two_processes_that_need_the_file_download_it_once(server, npz):
    code = "import sys; from cnnlab.data import cifar; cifar.fetch('cifar10', *sys.argv[1:])"
    processes = [subprocess.Popen([sys.executable, "-c", code, npz, server.url, server.md5]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(server.requests) == 1
    assert beside(npz) == ["cifar10.npz"]


KILLED = """
import os, signal, sys
from cnnlab.data import cifar
def die(done, total):
    if done > 100_000:
        os.kill(os.getpid(), signal.SIGKILL)
transfer = cifar._transfer
cifar._transfer = lambda url, part, report: transfer(url, part, die)
cifar.fetch('cifar10', *sys.argv[1:])
"""


def test_killed_download_resumes(server, npz):
    result = subprocess.run([sys.executable, "-c", KILLED, npz, server.url, server.md5], check=False)
    assert result.returncode == -9
    fetch(server, npz)
    assert server.requests[-1].startswith("bytes=")
    assert beside(npz) == ["cifar10.npz"]
    assert archive.read(npz).num_classes == 10


def test_folder_that_cannot_be_made_is_the_machines_fault(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="could not be made"):
        fetch(server, tmp_path / "file" / "cifar10.npz")


def test_full_disk_keeps_the_part_and_says_so(server, npz):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(MachineError, match="could not be made: File too large"):
            fetch(server, npz)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert part(npz).read_bytes() == server.content[:100_000]
    fetch(server, npz)
    assert server.requests == [None, "bytes=100000-"]
    assert archive.read(npz).num_classes == 10
