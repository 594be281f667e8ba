"""Shards from anywhere: a web server that fails on purpose, an S3 server of our own, and the cache that they share."""

import fcntl
import hashlib
import http.server
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from torch.utils.data import DataLoader, Dataset

from vlad.data.retries import FetchOptions, StorageError
from vlad.data.shard_cache import ShardCache
from vlad.data.storage import exists, expand, list_files, publish, read_bytes
from vlad.data.stream import ShardBatches, StreamOptions, open_sets
from vlad.data.synthetic import SyntheticOptions, render_sign
from vlad.data.urls import is_url, join, parent, shown
from vlad.data.writing import write_manifest, write_shards
from vlad.errors import UserError

SHARD = bytes(range(256)) * 1200  # 300 kB
SUM = hashlib.sha256(SHARD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's plan for the path says, and counts what it is asked."""

    def do_GET(self):
        asked = self.server.asked
        with self.server.guard:
            asked[self.path] += 1
            plan = self.server.plans.get(self.path.partition("?")[0], [])
            behaviour = plan.pop(0) if plan else "whole"
        data = self.server.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
        elif isinstance(behaviour, int):
            self.send_response(behaviour)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour == "drop":
            self.close_connection = True
        elif behaviour == "unsized":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if behaviour == "stall":
                self.wfile.write(data[:1000])
                self.wfile.flush()
                self.server.released.wait(20)
            elif behaviour == "slow":
                self.server.released.wait(20)
                self.wfile.write(data)
            elif behaviour == "truncate":
                self.wfile.write(data[: len(data) // 2])
            elif behaviour == "garble":
                self.wfile.write(bytes(len(data)))
            else:
                self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files, server.plans, server.asked = {"/a/0.tar": SHARD}, {}, Counter()
    server.guard, server.released = threading.Lock(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A bucket with the shard as s3://shards/a/0.tar."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3")
    if store.exists("shards"):
        store.rm("shards", recursive=True)
    store.mkdir("shards")
    store.pipe("shards/a/0.tar", SHARD)
    return store


def cache(directory, **changes):
    options = {"retries": 3, "timeout_seconds": 5.0, "backoff_seconds": 0.001, "max_bytes": 10**7, **changes}
    return ShardCache(FetchOptions(str(directory), **options))


def left(directory):
    return sorted(path.suffix for path in directory.iterdir() if path.name != "lock")


# Names


def test_a_scheme_makes_a_url_and_a_colon_does_not():
    assert all(map(is_url, ("s3://b/k", "http://h/p", "GS://b", "file:///x")))
    assert not any(map(is_url, ("a:b/c.tar", "/x/y", "pipe:cat", "1://", "://x")))


def test_urls_are_shown_without_what_is_secret():
    assert shown("https://me:word@host/a/0.tar?signature=1") == "https://host/a/0.tar"
    assert shown("s3://bucket/a?.tar") == "s3://bucket/a?.tar"
    assert shown("abfss://shards@us.dfs.core.windows.net/a") == "abfss://shards@us.dfs.core.windows.net/a"
    assert shown("a@b?c") == "a@b?c"


def test_names_are_joined_and_taken_apart():
    assert join("s3://b/a/", "0.tar") == "s3://b/a/0.tar"
    assert join("/a", "0.tar") == "/a/0.tar"
    assert parent("http://h/a/0.tar?x=/y") == "http://h/a"
    assert parent("/a/0.tar") == "/a"


# Finding


def test_local_shards_are_found_by_directory_glob_braces_and_file_url(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    whole = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    assert expand(str(tmp_path)) == expand(f"{tmp_path}/*.tar") == expand(f"file://{tmp_path}") == whole
    assert expand(f"{tmp_path}/{{b,a,x}}.tar") == whole
    assert list_files(str(tmp_path), ".tar") == whole
    assert list_files(str(tmp_path / "none"), ".tar") == ()
    with pytest.raises(UserError, match=r"no shards at .*none.*tools/make_shards\.py"):
        expand(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:touch {ran}",
        " PIPE: touch {ran}",
        "exec:touch {ran}",
        "pipe://touch {ran}",
        "simplecache::s3://b/0.tar",
        "filecache://b/0.tar",
        "reference://x/0.tar",
        "zip://0.tar::s3://b/x.zip",
        "root://h/0.tar",
        "nosuch://b/0.tar",
    ],
)
def test_programs_and_unknown_schemes_are_refused(tmp_path, pattern):
    pattern = pattern.format(ran=tmp_path / "ran")
    for use in (expand, exists, read_bytes, partial(list_files, suffix=".tar"), partial(publish, tmp_path / "x")):
        with pytest.raises(UserError, match=r"would run a program|shards are not read from|chains file systems"):
            use(pattern)
    with pytest.raises(UserError), cache(tmp_path / "cache").local(pattern):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_brace_pattern_must_close_and_end(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="brace without its partner"):
        expand(f"{tmp_path}/{{0..9.tar")
    with pytest.raises(UserError, match="over 1000000 shards"):
        expand("http://host/{000000000..999999999}.tar")
    monkeypatch.setattr("vlad.data.storage.MAX_PATHS", 99)
    assert len(expand("http://host/{0..8}/{0..9}.tar")) == 90
    with pytest.raises(UserError, match="over 99 shards"):
        expand("http://host/{0..9}/{0..9}.tar")


def test_a_mistyped_scheme_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'https'"):
        expand("htps://host/{0..2}.tar")


def test_web_shards_come_from_braces_or_the_manifest(server):
    assert expand(server.url + "/a/{0..2}.tar") == tuple(f"{server.url}/a/{i}.tar" for i in range(3))
    assert not server.asked
    server.files["/a/manifest.json"] = b'{"shards": [{"name": "1.tar"}, {"name": "0.tar"}]}'
    assert expand(server.url + "/a/") == (f"{server.url}/a/0.tar", f"{server.url}/a/1.tar")
    server.files["/a/manifest.json"] = b'{"shards": [{"name": "../1.tar"}]}'
    with pytest.raises(UserError, match=r"manifest\.json is no shard manifest .*\.\./1\.tar"):
        expand(server.url + "/a")
    with pytest.raises(UserError, match="does not list its files, and there is no manifest"):
        expand(server.url + "/b")
    with pytest.raises(UserError, match="write a brace pattern"):
        expand(server.url + "/a/*.tar")


def test_store_shards_are_listed_globbed_and_named(s3):
    s3.pipe("shards/a/1.tar", b"")
    s3.pipe("shards/a/note.txt", b"")
    both = ("s3://shards/a/0.tar", "s3://shards/a/1.tar")
    for pattern in ("s3://shards/a", "s3://shards/a/", "s3://shards/*/*.tar", "s3://shards/a/{0..1}.tar"):
        assert expand(pattern) == both
    assert list_files("s3://shards/a", ".txt") == ("s3://shards/a/note.txt",)
    for pattern in ("s3://shards/none", "s3://shards/none/*.tar", "s3://no-such-bucket/a"):
        with pytest.raises(UserError, match="there are no shards at s3://"):
            expand(pattern)


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [
        ("s3", "s3fs", "s3"),
        ("gs", "gcsfs", "gs"),
        ("gcs", "gcsfs", "gs"),
        ("az", "adlfs", "azure"),
        ("abfs", "adlfs", "azure"),
        ("abfss", "adlfs", "azure"),  # a scheme that fsspec does not know before the package is there
    ],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, scheme, package, extra):
    for module in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(_registry, scheme, raising=False)  # where what was asked for is remembered
    url = f"{scheme}://shards/a"
    (tmp_path / "file").write_bytes(SHARD)
    for use in (expand, exists, read_bytes, partial(list_files, suffix=".tar"), partial(publish, tmp_path / "file")):
        with pytest.raises(StorageError) as caught:
            use(url)
        remedy = f"install it: pip install {package} (the extra vlad[{extra}])."
        assert str(caught.value) == f"{url} needs a package that is not installed; {remedy}"


class StoreOfAnotherName(MemoryFileSystem):
    """A store as gcsfs and adlfs are: paths are BUCKET/KEY, and the account in a URL is no part of them."""

    protocol = ("abfs", "gs", "az", "abfss")
    cachable = False
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        place, slash, key = path.rpartition("://")[2].strip("/").partition("/")
        return place.partition("@")[0] + slash + key


@pytest.mark.parametrize("place", ["gs://shards", "az://shards", "abfss://shards@us.dfs.core.windows.net"])
def test_other_object_stores_are_read_and_written_by_the_names_they_were_asked_with(monkeypatch, tmp_path, place):
    monkeypatch.setitem(_registry, place.partition(":")[0], StoreOfAnotherName)
    StoreOfAnotherName.store.clear()
    (tmp_path / "file").write_bytes(SHARD)
    for name in ("0.tar", "1.tar"):
        publish(tmp_path / "file", f"{place}/a/{name}")
    assert set(StoreOfAnotherName.store) == {"shards/a/0.tar", "shards/a/1.tar"}

    both = (f"{place}/a/0.tar", f"{place}/a/1.tar")
    for pattern in (f"{place}/a", f"{place}/a/", f"{place}/*/*.tar", f"{place}/a/{{0..1}}.tar"):
        assert expand(pattern) == both
    assert list_files(f"{place}/a", ".tar") == both
    assert read_bytes(both[0]) == SHARD
    assert exists(both[0]) and not exists(f"{place}/a/9.tar")
    with cache(tmp_path / "cache").local(both[1]) as path:
        assert path.read_bytes() == SHARD
    with pytest.raises(StorageError) as caught:
        read_bytes(f"{place}/a/9.tar")
    assert str(caught.value).startswith(f"data.shards: {place}/a/9.tar failed after 1 try: it is not there")


def test_a_store_that_is_told_too_little_is_not_asked_again(monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("Must provide either a connection_string or account_name with credentials!!")

    monkeypatch.setitem(_registry, "az", StoreOfAnotherName)
    monkeypatch.setattr(StoreOfAnotherName, "ls", refuse)
    with pytest.raises(StorageError, match=r"az://shards/a failed after 1 try: Must provide either .*account_name"):
        expand("az://shards/a")


# Reading and publishing


def test_files_are_read_and_asked_for(server, s3, tmp_path):
    (tmp_path / "0.tar").write_bytes(SHARD)
    for place in (server.url + "/a/0.tar", "s3://shards/a/0.tar", str(tmp_path / "0.tar")):
        missing = place.replace("0.tar", "1.tar")
        assert read_bytes(place) == SHARD
        assert exists(place)
        assert not exists(missing)
        with pytest.raises(StorageError, match=r"longer than 1000 bytes"):
            read_bytes(place, max_bytes=1000)
        with pytest.raises(StorageError, match=r"1\.tar"):
            read_bytes(missing)
    assert not exists("s3://shards/a")  # a directory


def test_a_name_and_a_password_are_sent_and_not_shown(server):
    seen = []
    original = Handler.do_GET

    class Listening(Handler):
        def do_GET(self):
            seen.append(self.headers["Authorization"])
            original(self)

    server.RequestHandlerClass = Listening
    url = server.url.replace("//", "//me:w%20d@") + "/a/1 é.tar"
    server.files["/a/1%20%C3%A9.tar"] = SHARD
    assert read_bytes(url) == SHARD
    assert seen == ["Basic bWU6dyBk"]
    with pytest.raises(StorageError) as caught:
        read_bytes(url + "x")
    assert "me" not in str(caught.value).partition("failed")[0]


def test_what_is_published_is_whole(s3, tmp_path):
    (tmp_path / "file").write_bytes(SHARD)
    for target in ("s3://shards/b/c.tar", str(tmp_path / "d/e.tar"), f"file://{tmp_path}/d/f.tar"):
        publish(tmp_path / "file", target)
        publish(tmp_path / "file", target)  # again
        assert read_bytes(target) == SHARD
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["e.tar", "f.tar"]
    with pytest.raises(StorageError, match="nothing is written over HTTP"):
        publish(tmp_path / "file", "http://host/0.tar")
    with pytest.raises(StorageError, match=r"no-such-bucket.* failed after 1 try"):
        publish(tmp_path / "file", "s3://no-such-bucket/0.tar")


def test_a_failed_copy_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(SHARD)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(StorageError, match=r"e\.tar cannot be written \(No space left on device\)"):
        publish(tmp_path / "file", str(tmp_path / "d/e.tar"))
    assert list((tmp_path / "d").iterdir()) == []


class ShakyFileSystem(MemoryFileSystem):
    """A store of another kind: uploads are seen as they grow, and it stalls or breaks when told to."""

    protocol = "ftp"  # a name that fsspec knows
    store, pseudo_dirs, trouble = {}, [""], []

    def _open(self, path, mode="rb", **options):
        if "stall" in self.trouble:
            self.trouble.remove("stall")
            time.sleep(1)
        return super()._open(path, mode, **options)

    def put_file(self, lpath, rpath, **options):
        if self.trouble:
            self.pipe_file(rpath, Path(lpath).read_bytes()[:1000])
            raise self.trouble.pop()
        super().put_file(lpath, rpath, **options)


@pytest.fixture
def shaky():
    before = fsspec.get_filesystem_class("ftp")
    fsspec.register_implementation("ftp", ShakyFileSystem, clobber=True)
    yield ShakyFileSystem
    fsspec.register_implementation("ftp", before, clobber=True)


def test_other_stores_get_the_name_when_the_file_is_whole(shaky, tmp_path):
    (tmp_path / "file").write_bytes(SHARD)
    options = FetchOptions(retries=2, backoff_seconds=0)
    shaky.trouble = [OSError("broken off"), ConnectionResetError("gone")]
    publish(tmp_path / "file", "ftp://a/0.tar", options)
    assert list_files("ftp://a", "", options) == ("ftp://a/0.tar",)
    assert read_bytes("ftp://a/0.tar", options) == SHARD
    shaky.trouble = [OSError("broken off")] * 3
    with pytest.raises(StorageError, match=r"ftp://a/1\.tar failed after 3 tries: broken off"):
        publish(tmp_path / "file", "ftp://a/1.tar", options)
    assert list_files("ftp://a", "", options) == ("ftp://a/0.tar",)


def test_a_store_that_stalls_is_asked_again(shaky, tmp_path):
    shaky.trouble = []
    publish_source = tmp_path / "file"
    publish_source.write_bytes(SHARD)
    publish(publish_source, "ftp://b/0.tar")
    shaky.trouble = ["stall"]
    with cache(tmp_path / "cache", timeout_seconds=0.1).local("ftp://b/0.tar") as path:
        assert path.read_bytes() == SHARD
    shaky.trouble = ["stall"] * 2
    with (
        pytest.raises(StorageError, match=r"ftp://b/0\.tar failed after 2 tries: nothing came for 0\.1 seconds"),
        cache(tmp_path / "other", timeout_seconds=0.1, retries=1).local("ftp://b/0.tar"),
    ):
        pass


# The cache


def test_a_local_path_is_given_back(tmp_path):
    with cache(tmp_path / "cache").local(str(tmp_path / "0.tar")) as path:
        assert path == tmp_path / "0.tar"
    assert not (tmp_path / "cache").exists()


def test_a_shard_is_fetched_once(server, s3, tmp_path):
    for url in (server.url + "/a/0.tar", "s3://shards/a/0.tar"):
        for _ in range(3):
            with cache(tmp_path).local(url, len(SHARD), SUM) as path:
                assert path.read_bytes() == SHARD
    assert server.asked["/a/0.tar"] == 1
    assert left(tmp_path) == [".shard", ".shard"]


@pytest.mark.parametrize(
    "plan",
    [
        [500, 503, 429],
        ["drop", "truncate", "garble"],
        ["truncate"] * 3,
        ["stall"],
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(server, tmp_path, plan):
    server.plans["/a/0.tar"] = list(plan)
    timeout = 0.2 if "stall" in plan else 5.0
    with cache(tmp_path, timeout_seconds=timeout).local(server.url + "/a/0.tar", sha256=SUM) as path:
        assert path.read_bytes() == SHARD
    assert server.asked["/a/0.tar"] == len(plan) + 1
    assert left(tmp_path) == [".shard"]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (503, "after 4 tries: the server answers 503 Service Unavailable; check the address"),
        ("truncate", "after 4 tries: it ended after 153600 of 307200 bytes; copy or make it again"),
        ("garble", "after 4 tries: its checksum is not the one in the manifest"),
        ("drop", "after 4 tries: Remote end closed connection without response"),
        ("stall", r"after 4 tries: nothing came for 0\.2 seconds"),
    ],
)
def test_what_does_not_pass_names_the_shard_the_reason_and_the_tries(server, tmp_path, behaviour, said):
    server.plans["/a/0.tar"] = [behaviour] * 9
    timeout = 0.2 if behaviour == "stall" else 5.0
    with (
        pytest.raises(StorageError, match=rf"^data\.shards: {server.url}/a/0\.tar failed {said}"),
        cache(tmp_path, timeout_seconds=timeout).local(server.url + "/a/0.tar?key=secret", sha256=SUM),
    ):
        pass
    assert server.asked["/a/0.tar?key=secret"] == 4
    assert left(tmp_path) == []


@pytest.mark.parametrize("answer", [403, 404, 400])
def test_what_cannot_pass_is_not_tried_again(server, tmp_path, answer):
    server.plans["/a/0.tar"] = [answer] * 9
    with (
        pytest.raises(StorageError, match=f"failed after 1 try: the server answers {answer}"),
        cache(tmp_path).local(server.url + "/a/0.tar"),
    ):
        pass
    assert server.asked["/a/0.tar"] == 1


def test_a_server_that_is_not_there_is_tried_again(tmp_path):
    with (
        pytest.raises(StorageError, match=r"after 4 tries: .*refused"),
        cache(tmp_path).local("http://127.0.0.1:9/0.tar"),
    ):
        pass


def test_a_missing_object_is_not_tried_again(s3, tmp_path):
    with (
        pytest.raises(StorageError, match=r"s3://shards/a/9\.tar failed after 1 try: it is not there"),
        cache(tmp_path).local("s3://shards/a/9.tar"),
    ):
        pass


def test_a_shard_of_unknown_length_is_refused(server, tmp_path):
    """Half of it would pass for the whole."""
    server.plans["/a/0.tar"] = ["unsized"]
    with pytest.raises(StorageError, match="does not say how long"), cache(tmp_path).local(server.url + "/a/0.tar"):
        pass
    server.plans["/a/0.tar"] = ["unsized"]
    with cache(tmp_path).local(server.url + "/a/0.tar", len(SHARD)) as path:
        assert path.read_bytes() == SHARD


def test_another_length_than_expected_is_an_error(server, tmp_path):
    with (
        pytest.raises(StorageError, match="307200 bytes where 5 are expected"),
        cache(tmp_path, retries=0).local(server.url + "/a/0.tar", 5),
    ):
        pass


def test_the_least_recently_used_shards_make_room(server, tmp_path):
    names = [f"/a/{number}.tar" for number in range(4)]
    server.files |= dict.fromkeys(names, SHARD)
    shards = cache(tmp_path, max_bytes=3 * len(SHARD))
    (tmp_path / "mine.tar").write_bytes(SHARD)  # not ours to remove or to count
    for name in (*names[:3], names[0], names[3], names[0]):
        with shards.local(server.url + name) as path:
            assert path.read_bytes() == SHARD
        os.utime(path, ns=(time.time_ns(), server.asked.total() + path.stat().st_mtime_ns))
    assert server.asked == dict.fromkeys(names, 1)
    with shards.local(server.url + names[1]):  # it had to go for number 3
        pass
    assert server.asked[names[1]] == 2
    assert left(tmp_path) == [".shard"] * 3 + [".tar"]


def test_a_shard_that_is_read_is_not_removed(server, tmp_path):
    server.files |= {"/a/1.tar": SHARD, "/a/2.tar": SHARD}
    shards = cache(tmp_path, max_bytes=len(SHARD))
    with shards.local(server.url + "/a/0.tar") as first:
        with shards.local(server.url + "/a/1.tar") as second:
            assert first.read_bytes() == second.read_bytes() == SHARD
        with shards.local(server.url + "/a/2.tar"):
            assert first.exists()
            assert not second.exists()


def test_a_shard_larger_than_the_cache_is_refused(server, tmp_path):
    with (
        pytest.raises(StorageError, match=r"307200 bytes, more than the whole cache .*max_bytes = 1000"),
        cache(tmp_path, max_bytes=1000).local(server.url + "/a/0.tar"),
    ):
        pass


def test_a_full_disk_is_named_before_the_download(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1))
    with (
        pytest.raises(StorageError, match=r"data\.fetch: .* cannot take another shard \(its disk is full\)"),
        cache(tmp_path).local(server.url + "/a/0.tar"),
    ):
        pass
    assert left(tmp_path) == []


def test_a_damaged_copy_is_fetched_again(server, tmp_path):
    with cache(tmp_path).local(server.url + "/a/0.tar", len(SHARD)) as path:
        pass
    path.write_bytes(b"half")
    with cache(tmp_path).local(server.url + "/a/0.tar", len(SHARD)) as path:
        assert path.read_bytes() == SHARD


def test_a_crashed_download_holds_nobody_up(server, tmp_path):
    server.plans["/a/0.tar"] = ["slow"]
    code = (
        "import sys; from vlad.data.shard_cache import *\n"
        "with ShardCache(FetchOptions(sys.argv[1])).local(sys.argv[2]): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), server.url + "/a/0.tar"])
    while not any(path.stat().st_size for path in tmp_path.glob("*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left(tmp_path) == [".partial"]
    with cache(tmp_path).local(server.url + "/a/0.tar") as path:
        assert path.read_bytes() == SHARD
    assert left(tmp_path) == [".shard"]


def test_what_a_crash_left_makes_room_first(server, tmp_path):
    (tmp_path / f"{'0' * 40}.partial").write_bytes(SHARD)
    with cache(tmp_path, max_bytes=len(SHARD)).local(server.url + "/a/0.tar"):
        assert left(tmp_path) == [".shard"]


def test_a_cache_is_handed_to_workers_that_are_not_forked(tmp_path):
    assert pickle.loads(pickle.dumps(cache(tmp_path))).options == cache(tmp_path).options


def _read(directory, url, results):
    with cache(directory).local(url) as path:
        results.put(path.read_bytes() == SHARD)


def test_two_processes_never_download_a_shard_at_once(server, tmp_path):
    server.plans["/a/0.tar"] = ["slow"]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (tmp_path, server.url + "/a/0.tar", results)
    processes = [context.Process(target=_read, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    while not server.asked:
        time.sleep(0.01)
    server.released.set()
    assert all(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert server.asked["/a/0.tar"] == 1


class Shards(Dataset):
    """Item number i is what shard i holds; as a data set of a run would, it reads through the cache."""

    def __init__(self, urls, directory):
        self.urls, self.cache = urls, cache(directory)

    def __len__(self):
        return len(self.urls)

    def __getitem__(self, number):
        with self.cache.local(self.urls[number]) as path:
            return hashlib.sha256(path.read_bytes()).hexdigest()


def test_workers_of_a_loader_read_after_their_parent_has(server, s3, tmp_path):
    """The parent has opened the store before: its event loop and sockets must not be used in a forked worker."""
    names = [f"a/{number}.tar" for number in range(4)]
    for name in names:
        s3.pipe(f"shards/{name}", SHARD)
        server.files[f"/{name}"] = SHARD
    urls = [*expand("s3://shards/a"), *(f"{server.url}/{name}" for name in names)]
    with cache(tmp_path / "parent").local(urls[0]):
        loader = DataLoader(
            Shards(urls, tmp_path / "workers"), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        assert list(loader) == [SUM] * 8
    assert read_bytes(urls[0]) == SHARD  # the parent's own still works


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_failure_is_told_in_one_sentence(server, tmp_path, workers):
    context = "fork" if workers else None
    loader = DataLoader(
        Shards([server.url + "/none.tar"], tmp_path),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
    )
    with pytest.raises(StorageError, match=r"^data\.shards: http.*/none\.tar failed after 1 try") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_a_forked_process_keeps_no_lock(server, tmp_path):
    """A worker that was forked while its parent read a shard has the open file too."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    with cache(tmp_path).local(server.url + "/a/0.tar") as path:
        process = context.Process(target=stop.wait, args=(30,))
        process.start()
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the lock is still held
    stop.set()
    process.join()


def test_wrong_options_are_refused():
    for wrong in ({"max_bytes": 0}, {"retries": -1}, {"timeout_seconds": 0}, {"backoff_seconds": -1}):
        with pytest.raises(UserError, match=r"data\.fetch"):
            FetchOptions(**wrong)


# The stream


def test_training_reads_from_a_store_what_it_reads_locally(s3, tmp_path):
    signs = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(30)]
    (tmp_path / "local").mkdir()
    write_manifest(tmp_path / "local", write_shards(signs, tmp_path / "local", samples_per_shard=8), {})
    for path in (tmp_path / "local").iterdir():
        publish(path, f"s3://shards/signs/{path.name}")
    fetch = FetchOptions(directory=str(tmp_path / "cache"))
    options = StreamOptions(
        picture_pixels=16, resolutions=(16, 24), batch_size=4, shuffle_window=8, workers=2, fetch=fetch
    )
    batches = []
    for place in (str(tmp_path / "local"), "s3://shards/signs"):
        dataset = ShardBatches(open_sets({place: 1.0}, fetch), options, 16)
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
        batches.append([batch.keys for batch in loader])
    assert batches[0] == batches[1]
    assert len(list((tmp_path / "cache").glob("*.shard"))) == 4


def test_a_shard_that_is_gone_stops_the_run_with_its_name(s3, tmp_path):
    signs = [render_sign(SyntheticOptions(size_pixels=16), index) for index in range(8)]
    write_manifest(tmp_path, write_shards(signs, tmp_path), {})
    for path in tmp_path.glob("*.*"):
        publish(path, f"s3://shards/gone/{path.name}")
    fetch = FetchOptions(directory=str(tmp_path / "cache"))
    sets = open_sets({"s3://shards/gone": 1.0}, fetch)
    s3.rm("shards/gone/000000.tar")
    with pytest.raises(StorageError, match=r"s3://shards/gone/000000\.tar"):
        list(ShardBatches(sets, StreamOptions(picture_pixels=16, batch_size=4, fetch=fetch), 1))
