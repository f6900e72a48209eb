from __future__ import annotations

import numpy as np
import pytest

from data.downloading import fetch
from data.downloading.fetch import NotFound, RemoteStream, Web, download_file, fetch_bytes, write_atomic
from data.errors import DataError
from tests.data.server import Server

BODY = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(fetch, "sleep", waited.append)
    return waited


@pytest.fixture
def server():
    with Server({"/file": BODY, "/empty": b""}) as running:
        yield running


@pytest.mark.parametrize("cut", [None, 1, 1000, 65_536, 299_999])
def test_cut_connections_are_continued_where_they_broke(server, cut):
    body = BODY if cut != 1 else BODY[:40]
    server.files["/file"] = body
    server.cut = cut
    assert fetch_bytes(f"{server.url}/file", Web(), 10**6) == body
    spans = server.asked("/file")
    assert len(spans) == (1 if cut is None else -(-len(body) // cut))
    assert spans[0] is None
    if cut is not None:
        assert spans[1] == f"bytes={cut}-"


def test_a_server_without_ranges_is_read_again_up_to_the_break(server):
    server.ranges, server.cut, server.cuts = False, 200_000, 3
    with RemoteStream(f"{server.url}/file", Web()) as stream:
        assert b"".join(iter(lambda: stream.read(50_000), b"")) == BODY
        assert stream.size == stream.tell() == len(BODY)


def test_a_server_that_never_gets_further_ends_in_an_error_with_growing_pauses(server, pauses):
    server.ranges, server.cut = False, 1000
    with pytest.raises(DataError, match=r"/file: nothing came in 4 attempts .*the same command again"):
        fetch_bytes(f"{server.url}/file", Web(attempts=4), 10**6)
    assert pauses == [0.5, 1.0, 2.0]


def test_server_errors_are_tried_again_and_404_is_not(server, pauses):
    server.fail_first = 2
    assert fetch_bytes(f"{server.url}/file", Web(), 10**6) == BODY
    assert pauses == [0.5, 1.0]
    with pytest.raises(NotFound, match=f"{server.url}/none: the server answers 404 Not Found; check"):
        fetch_bytes(f"{server.url}/none", Web(), 10)
    assert len(server.asked("/none")) == 1


def test_nobody_at_the_address(pauses):
    with Server({}) as server:
        url = server.url
    with pytest.raises(DataError, match="nothing came in 2 attempts"):
        fetch_bytes(f"{url}/file", Web(attempts=2), 10)
    with pytest.raises(DataError, match="no-scheme: not a usable address"):
        fetch_bytes("no-scheme", Web(), 10)


def test_empty_file_and_size_limit(server, tmp_path):
    assert fetch_bytes(f"{server.url}/empty", Web(), 10) == b""
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        fetch_bytes(f"{server.url}/file", Web(), 1000)
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        download_file(f"{server.url}/file", tmp_path / "file", Web(), 1000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_a_later_process_continues_the_part_that_is_there(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:123_456])
    download_file(f"{server.url}/file", tmp_path / "file", Web(), 10**6)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.asked("/file") == ["bytes=123456-"]
    assert not (tmp_path / "file.part").exists()


@pytest.mark.parametrize(("there", "requests"), [(BODY, 1), (BODY + b"more", 2)])
def test_a_part_that_is_whole_is_taken_and_one_that_is_too_long_is_dropped(server, tmp_path, there, requests):
    (tmp_path / "file.part").write_bytes(there)
    download_file(f"{server.url}/file", tmp_path / "file", Web(), 10**6)
    assert (tmp_path / "file").read_bytes() == BODY
    assert len(server.asked("/file")) == requests


def test_the_part_outlives_ctrl_c(server, tmp_path, monkeypatch):
    server.cut, server.cuts = 100_000, 1

    def refuse(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "sleep", refuse)
    with pytest.raises(KeyboardInterrupt):
        download_file(f"{server.url}/file", tmp_path / "file", Web(), 10**6)
    assert (tmp_path / "file.part").read_bytes() == BODY[:100_000]


def test_a_file_that_changes_its_length_meanwhile_is_noticed(server):
    with RemoteStream(f"{server.url}/file", Web()) as stream:
        server.cut, server.cuts = 70_000, 1
        stream.read(10)
        server.files["/file"] = BODY + b"x"
        with pytest.raises(DataError, match="was 300000 bytes long and is now 300001"):
            b"".join(iter(lambda: stream.read(65_536), b""))


def test_write_atomic_leaves_the_old_file_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "set" / "a.jpg"
    write_atomic(path, b"old", tmp_path / "scratch")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(fetch.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new", tmp_path / "scratch")
    assert path.read_bytes() == b"old"
    assert list((tmp_path / "scratch").iterdir()) == []
