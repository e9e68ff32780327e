"""Downloads from a real local server that breaks off, knows no ranges, changes its file or sends a page."""

import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from conftest import DATA

from cogvideo.checkpoints import download, transfer
from cogvideo.errors import CogVideoError

NAME = "cluster_label2.npy"


class Server(ThreadingHTTPServer):
    """Sends `files` by path; what it does wrong is set by a test. Remembers the Range of every request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.know_ranges, self.tell_versions, self.tell_length = True, True, True
        self.send_at_most, self.breaks = sys.maxsize, 0  # bytes of a response, and for how many responses
        self.pause = 0.0  # seconds between 64 kB
        self.fail_first = 0  # so many responses are 503
        self.ranges: list[str | None] = []

    def address(self, name=NAME):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, content = self.server, self.server.files.get(self.path[1:])
        server.ranges.append(self.headers.get("Range"))
        if server.fail_first:
            server.fail_first -= 1
            return self.send_error(503)
        if content is None:
            return self.send_error(404)
        version = f'"{hashlib.md5(content).hexdigest()}"'
        first = 0
        same = self.headers.get("If-Range", version) == version
        if server.know_ranges and same and (wanted := re.fullmatch(r"bytes=(\d+)-", server.ranges[-1] or "")):
            first = int(wanted[1])
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.tell_length:
            self.send_header("Content-Length", str(len(content) - first))
        if server.tell_versions:
            self.send_header("ETag", version)
        self.end_headers()
        end = len(content)
        if server.breaks:
            server.breaks -= 1
            end = min(end, first + server.send_at_most)
        for start in range(first, end, 65536):
            self.wfile.write(content[start : min(start + 65536, end)])
            time.sleep(server.pause)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "WAIT", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def labels(server):
    """A file of 1.6 MB that the server sends."""
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).integers(0, 500, 200_000))
    server.files[NAME] = out.getvalue()
    return out.getvalue()


def zipped(folder, prefix="") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return out.getvalue()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_its_hash_is_recorded(server, cache, labels):
    path, done = download.get(NAME, server.address())
    assert path == cache / NAME and path.read_bytes() == labels and done == "downloaded"
    assert json.loads((cache / "hashes.json").read_text()) == {NAME: hashlib.sha256(labels).hexdigest()}
    assert names(cache) == [NAME, "hashes.json"]
    assert (
        download.get(NAME, server.address()) == (path, "already here, unchanged") and len(server.ranges) == 1
    )


@pytest.mark.parametrize("tell_versions", [True, False])
def test_a_broken_connection_goes_on_where_it_stopped(server, labels, tell_versions):
    server.send_at_most, server.breaks, server.tell_versions = 700_000, 2, tell_versions
    path, _ = download.get(NAME, server.address())
    assert path.read_bytes() == labels and server.ranges == [None, "bytes=700000-", "bytes=1400000-"]


def test_when_nothing_more_comes_what_came_is_kept(server, cache, labels):
    server.send_at_most, server.breaks = 700_000, 1
    port = server.server_port
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            transfer.time,
            "sleep",
            lambda _: setattr(server, "send_at_most", 0) or setattr(server, "breaks", 99),
        )
        with pytest.raises(
            CogVideoError, match=r"700.0 kB|700 kB are kept and the same command resumes"
        ) as error:
            download.get(NAME, server.address())
    assert str(port) in str(error.value) and "browser" in str(error.value) and "--file" in str(error.value)
    assert (cache / f"{NAME}.part").read_bytes() == labels[:700_000] and not (cache / NAME).exists()
    server.breaks, server.ranges = 0, []
    path, _ = download.get(NAME, server.address())
    assert path.read_bytes() == labels and server.ranges == ["bytes=700000-"]
    assert names(cache) == [NAME, "hashes.json"]


def test_a_server_without_ranges_sends_all_again(server, labels):
    server.know_ranges, server.send_at_most, server.breaks = False, 700_000, 1
    path, _ = download.get(NAME, server.address())
    assert path.read_bytes() == labels and server.ranges == [None, "bytes=700000-"]


def test_a_server_that_tells_no_length(server, labels):
    server.tell_length = False
    assert download.get(NAME, server.address())[0].read_bytes() == labels


def test_a_file_that_changed_between_two_parts_is_not_mixed(server, cache, labels):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(labels[:500_000])
    (cache / f"{NAME}.part.json").write_text(json.dumps({"url": server.address(), "version": '"old"'}))
    assert download.get(NAME, server.address())[0].read_bytes() == labels and server.ranges == [
        "bytes=500000-"
    ]


def test_a_part_of_another_address_is_not_resumed(server, cache, labels):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(b"x" * 500_000)
    (cache / f"{NAME}.part.json").write_text(json.dumps({"url": "https://elsewhere/", "version": ""}))
    assert download.get(NAME, server.address())[0].read_bytes() == labels and server.ranges == [None]


@pytest.mark.parametrize("surplus", [0, 10])
def test_a_part_that_is_already_whole_or_longer(server, cache, labels, surplus):
    cache.mkdir()
    (cache / f"{NAME}.part").write_bytes(labels + b"x" * surplus)
    (cache / f"{NAME}.part.json").write_text(json.dumps({"url": server.address(), "version": ""}))
    assert download.get(NAME, server.address())[0].read_bytes() == labels
    assert len(server.ranges) == (2 if surplus else 1)


def test_a_busy_server_is_asked_again(server, labels):
    server.fail_first = 2
    assert download.get(NAME, server.address())[0].read_bytes() == labels and len(server.ranges) == 3
    server.fail_first = 99
    with pytest.raises(CogVideoError, match="503"):
        download.get("ice_image.pt", server.address())


@pytest.mark.parametrize("name", ["ice_text.model", "ice_image.pt", NAME, "coglm"])
def test_missing_at_the_address(server, cache, name):
    with pytest.raises(CogVideoError) as error:
        download.get(name, server.address("gone"))
    for word in (server.address("gone"), "404", "browser", "--url", f"weights get {name} --file"):
        assert word in str(error.value)
    assert len(server.ranges) == 1 and names(cache) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://nowhere.invalid/x"])
def test_offline(url, cache):
    with pytest.raises(
        CogVideoError, match=rf"^{url} cannot be downloaded \(.+\): try again later, or download .*browser"
    ):
        download.get("coglm", url)
    assert names(cache) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "weights.zip"])
def test_only_the_web(url):
    with pytest.raises(CogVideoError, match="no address of the web"):
        download.get(NAME, url)


@pytest.mark.parametrize("name", ["ice_text.model", "ice_image.pt", NAME, "coglm"])
def test_a_page_instead_of_the_file(server, cache, name):
    server.files["page"] = b"<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(CogVideoError, match="something else"):
        download.get(name, server.address("page"))
    assert names(cache) == []


def test_a_file_that_changed_since_first_use(server, cache, labels):
    path, _ = download.get(NAME, server.address())
    path.write_bytes(labels[:-1] + b"!")
    with pytest.raises(CogVideoError, match="not the file that was recorded"):
        download.get(NAME)
    path.unlink()
    server.files[NAME] = labels[:-1] + b"?"
    with pytest.raises(CogVideoError, match=r"hashes\.json if the change is meant"):
        download.get(NAME, server.address())
    assert not path.exists()
    server.files[NAME] = labels
    assert download.get(NAME, server.address())[1] == "downloaded"


def test_a_file_put_there_by_hand_is_recorded_on_first_use(cache, labels):
    cache.mkdir()
    (cache / NAME).write_bytes(labels)
    assert download.get(NAME)[1] == "already here; its hash is recorded from now on"
    assert download.get(NAME)[1] == "already here, unchanged"


@pytest.mark.parametrize("prefix", ["", "coglm/", "sharefs/cogview-new/coglm/"])
def test_a_zip_is_unpacked_wherever_the_model_is_in_it(server, cache, prefix):
    source = DATA / "cogvideo" / "sequential_full"
    server.files["coglm.zip"] = zipped(source, prefix)
    path, done = download.get("coglm", server.address("coglm.zip"))
    assert path == cache / "coglm" and done == "downloaded and unpacked"
    assert names(path) == names(source) and sorted(cache.iterdir()) == [path, cache / "hashes.json"]
    for file in names(source):
        assert (path / file).read_bytes() == (source / file).read_bytes()
    assert download.get("coglm")[1] == "already here, unchanged"
    (path / "latest").unlink()
    with pytest.raises(CogVideoError, match="latest is missing: delete"):
        download.get("coglm")
    (path / "latest").write_text("2")
    with pytest.raises(CogVideoError, match="coglm/latest is not the file"):
        download.get("coglm")


def test_a_zip_put_there_by_hand_is_unpacked_and_stays(cache):
    cache.mkdir()
    archive = cache / "cogvideo-stage2.zip"
    archive.write_bytes(zipped(DATA / "cogvideo" / "interpolation"))
    path, done = download.get("cogvideo-stage2")
    assert (path / "latest").read_text() == "1" and str(archive) in done and archive.exists()


def test_a_zip_elsewhere_is_unpacked_and_stays(tmp_path, cache):
    archive = tmp_path / "from a stick.zip"
    archive.write_bytes(zipped(DATA / "cogvideo" / "interpolation"))
    path, done = download.get("coglm", file=archive)
    assert (
        path == cache / "coglm" and str(archive) in done and archive.exists() and (path / "latest").exists()
    )


def test_a_file_elsewhere_is_copied(tmp_path, cache, labels):
    (tmp_path / "downloaded").write_bytes(labels)
    assert download.get(NAME, file=tmp_path / "downloaded") == (cache / NAME, "copied")
    assert names(cache) == [NAME, "hashes.json"] and (cache / NAME).read_bytes() == labels
    for file, reason in (
        (tmp_path / "gone", "cannot be read"),
        (tmp_path / "downloaded", "is not ice_image.pt"),
    ):
        with pytest.raises(CogVideoError, match=reason):
            download.get("ice_image.pt", file=file)


def test_half_a_zip(server, cache):
    whole = zipped(DATA / "cogvideo" / "sequential_full")
    server.files["coglm.zip"] = whole[: len(whole) // 2]
    with pytest.raises(
        CogVideoError, match=r"coglm\.zip is damaged or only half downloaded .*: delete it and get it again"
    ):
        download.get("coglm", server.address("coglm.zip"))
    assert names(cache) == ["coglm.zip"]  # not recorded: a whole one is welcome
    (cache / "coglm.zip").unlink()
    server.files["coglm.zip"] = whole
    download.get("coglm", server.address("coglm.zip"))


def test_too_little_room_is_told_before_anything_is_sent(server, cache, labels, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, len(labels) - 1))
    with pytest.raises(
        CogVideoError, match=r"GB are needed in .*GB are free: make room, or set COGVIDEO_CACHE"
    ):
        download.get(NAME, server.address())
    assert names(cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, len(labels)))
    download.get(NAME, server.address())
    server.files["coglm.zip"] = zipped(DATA / "cogvideo" / "sequential_full")
    room = len(server.files["coglm.zip"]) * 2 - 1  # the zip would fit, but not what is in it
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, room))
    with pytest.raises(CogVideoError, match="make room"):
        download.get("coglm", server.address("coglm.zip"))


def test_packaged_and_unknown_names(cache):
    path, done = download.get("demo")
    assert (path / "pipeline.json").exists() and done == "comes with this package"
    with pytest.raises(CogVideoError, match="called 'gpt': choose one of demo, coglm, "):
        download.get("gpt")
    assert not cache.exists()


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}'])
def test_damaged_hashes(server, cache, labels, content):
    cache.mkdir()
    (cache / "hashes.json").write_text(content)
    with pytest.raises(CogVideoError, match=r"hashes\.json .*: delete it"):
        download.get(NAME, server.address())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_by_the_user_or_killed(server, cache, labels, stop):
    server.pause = 0.2
    command = [sys.executable, "-m", "cogvideo", "weights", "get", NAME, "--url", server.address()]

    def listen():  # a runner in the background hands down a SIGINT that is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    part = cache / f"{NAME}.part"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        while not part.exists() or part.stat().st_size == 0:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -9) and "Traceback" not in err
    kept = part.read_bytes()
    assert 0 < len(kept) < len(labels) and kept == labels[: len(kept)]
    server.pause, server.ranges = 0, []
    assert download.get(NAME, server.address())[0].read_bytes() == labels
    assert server.ranges == [f"bytes={len(kept)}-"]


def test_two_processes_do_not_get_the_same_weights_at_once(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="locks of POSIX systems")
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    with open(tmp_path / "coglm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CogVideoError, match="Another process is getting coglm"):
            download.get("coglm")
