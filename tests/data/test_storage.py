"""Storage locations: a failing web server, a local S3 server, and stores in memory."""

import sys
import time
import urllib.error
from email.message import Message
from functools import partial
from pathlib import Path
from unittest import mock

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from storage_servers import SHARD, Handler, cache

from vlad.data.options import FetchOptions
from vlad.data.storage.locations import (
    _max_expansions,
    exists,
    expand_braces,
    expand_pattern,
    list_files,
    publish,
    read_bytes,
)
from vlad.data.storage.retries import StorageError
from vlad.data.storage.urls import display_url, is_url, join_path, parent_directory
from vlad.utils.errors import UserError

# Names


def test_a_scheme_makes_a_url_and_a_colon_does_not():
    assert all(map(is_url, ("s3://b/k", "http://h/p", "GS://b", "file:///x")))
    assert not any(map(is_url, ("a:b/c.tar", "/x/y", "pipe:cat", "1://", "://x")))


def test_urls_are_displayed_without_secrets():
    assert display_url("https://me:word@host/a/0.tar?signature=1") == "https://host/a/0.tar"
    assert display_url("s3://bucket/a?.tar") == "s3://bucket/a?.tar"
    assert display_url("abfss://shards@us.dfs.core.windows.net/a") == "abfss://shards@us.dfs.core.windows.net/a"
    assert display_url("a@b?c") == "a@b?c"


def test_names_are_joined_and_taken_apart():
    assert join_path("s3://b/a/", "0.tar") == "s3://b/a/0.tar"
    assert join_path("/a", "0.tar") == "/a/0.tar"
    assert parent_directory("http://h/a/0.tar?x=/y") == "http://h/a"
    assert parent_directory("/a/0.tar") == "/a"


# Finding


def test_local_shards_are_found_by_directory_glob_braces_and_file_url(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    whole = (str(tmp_path / "a.tar"), str(tmp_path / "b.tar"))
    assert (
        expand_pattern(str(tmp_path))
        == expand_pattern(f"{tmp_path}/*.tar")
        == expand_pattern(f"file://{tmp_path}")
        == whole
    )
    assert expand_pattern(f"{tmp_path}/{{b,a}}.tar") == whole
    assert list_files(str(tmp_path), ".tar") == whole
    assert list_files(str(tmp_path / "none"), ".tar") == ()
    with pytest.raises(UserError, match=r"no shards at .*none.*tools/make_shards\.py"):
        expand_pattern(str(tmp_path / "none"))


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
    for use in (
        expand_pattern,
        exists,
        read_bytes,
        partial(list_files, suffix=".tar"),
        partial(publish, tmp_path / "x"),
    ):
        with pytest.raises(UserError, match=r"would run a program|shards are not read from|chains file systems"):
            use(pattern)
    with pytest.raises(UserError), cache(tmp_path / "cache").local(pattern):
        pass
    assert not (tmp_path / "ran").exists()


def test_a_brace_pattern_must_close_and_end(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="brace without its partner"):
        expand_pattern(f"{tmp_path}/{{0..9.tar")
    with pytest.raises(UserError, match="over 1000000 shards"):
        expand_pattern("http://host/{000000000..999999999}.tar")
    monkeypatch.setattr("vlad.data.storage.locations.MAX_PATHS", 99)
    assert len(expand_pattern("http://host/{0..8}/{0..9}.tar")) == 90
    with pytest.raises(UserError, match="over 99 shards"):
        expand_pattern("http://host/{0..9}/{0..9}.tar")


@pytest.mark.parametrize(
    "bomb",
    ["{a,b}" * 40, "{a..z}" * 9, "{" * 5000 + "a,b" + "}" * 5000, "{0..999}/{0..99}/{0..99}"],
)
def test_a_brace_bomb_is_refused_unexpanded(monkeypatch, bomb):
    monkeypatch.setattr("vlad.data.storage.locations.braceexpand", None)
    with pytest.raises(UserError, match="over 1000000 shards"):
        expand_pattern(f"http://host/{bomb}.tar")


@pytest.mark.parametrize("pattern", ["{a,b}{0..3}", "{a,b{1,2,{3..9}}}", "x", r"\{a,b\}", "{x}", "{a..e}{000..010..2}"])
def test_the_bound_of_a_brace_pattern_holds(pattern):
    assert len(expand_braces(pattern)) <= _max_expansions(pattern) <= 1000


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "{000,002}.tar", "00{1..3}.tar"])
def test_missing_shards_of_a_range_are_named(tmp_path, pattern):
    for name in ("000.tar", "001.tar", "003.tar"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"1 of the \d shards that .* names are missing \(the first: .*002\.tar\)"):
        expand_pattern(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("name", ["set[1]", "a{b,c}", "[!x]*", "{0..3}", "q?"])
def test_brackets_in_the_name_of_what_exists_are_no_pattern(tmp_path, name):
    (tmp_path / name).mkdir()
    path = tmp_path / name / "0[1].tar"
    path.touch()
    for pattern in (path, tmp_path / name, f"file://{path}"):
        assert expand_pattern(str(pattern)) == (str(path),)
    if "{" not in name:
        assert expand_pattern(f"{tmp_path / name}/*.tar") == (str(path),)


@pytest.mark.parametrize("answer", [403, 404, 410])
def test_what_is_optional_may_be_refused(tmp_path, answer):
    """Signed URLs, and buckets that do not list, answer 403 for what is not there."""
    url = "http://host/manifest.json"
    error = urllib.error.HTTPError(url, answer, "no", Message(), None)
    with mock.patch("urllib.request.urlopen", side_effect=error):
        assert not exists(url)
    with mock.patch("vlad.data.storage.remote_files.file_system", side_effect=PermissionError):
        assert not exists("s3://bucket/manifest.json")


def test_a_mistyped_scheme_gets_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'https'"):
        expand_pattern("htps://host/{0..2}.tar")


def test_web_shards_come_from_braces_or_the_manifest(server):
    assert expand_pattern(server.url + "/a/{0..2}.tar") == tuple(f"{server.url}/a/{i}.tar" for i in range(3))
    assert not server.asked
    server.files["/a/manifest.json"] = b'{"shards": [{"name": "1.tar"}, {"name": "0.tar"}]}'
    assert expand_pattern(server.url + "/a/") == (f"{server.url}/a/0.tar", f"{server.url}/a/1.tar")
    server.files["/a/manifest.json"] = b'{"shards": [{"name": "../1.tar"}]}'
    with pytest.raises(UserError, match=r"manifest\.json is no shard manifest .*\.\./1\.tar"):
        expand_pattern(server.url + "/a")
    with pytest.raises(UserError, match="does not list its files, and there is no manifest"):
        expand_pattern(server.url + "/b")
    with pytest.raises(UserError, match="write a brace pattern"):
        expand_pattern(server.url + "/a/*.tar")


def test_store_shards_are_listed_globbed_and_named(s3):
    s3.pipe("shards/a/1.tar", b"")
    s3.pipe("shards/a/note.txt", b"")
    both = ("s3://shards/a/0.tar", "s3://shards/a/1.tar")
    for pattern in ("s3://shards/a", "s3://shards/a/", "s3://shards/*/*.tar", "s3://shards/a/{0..1}.tar"):
        assert expand_pattern(pattern) == both
    assert list_files("s3://shards/a", ".txt") == ("s3://shards/a/note.txt",)
    for pattern in ("s3://shards/none", "s3://shards/none/*.tar", "s3://no-such-bucket/a"):
        with pytest.raises(UserError, match="there are no shards at s3://"):
            expand_pattern(pattern)


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
    for use in (
        expand_pattern,
        exists,
        read_bytes,
        partial(list_files, suffix=".tar"),
        partial(publish, tmp_path / "file"),
    ):
        with pytest.raises(StorageError) as caught:
            use(url)
        remedy = f"install {package}: pip install 'vlad-diffusion[{extra}]'."
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
        assert expand_pattern(pattern) == both
    assert list_files(f"{place}/a", ".tar") == both
    assert read_bytes(both[0]) == SHARD
    assert exists(both[0]) and not exists(f"{place}/a/9.tar")
    with cache(tmp_path / "cache").local(both[1]) as path:
        assert path.read_bytes() == SHARD
    with pytest.raises(StorageError) as caught:
        read_bytes(f"{place}/a/9.tar")
    assert str(caught.value).startswith(f"data.shards: {place}/a/9.tar failed after 1 try: it is not there")


def test_missing_credentials_are_not_tried_again(monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("Must provide either a connection_string or account_name with credentials!!")

    monkeypatch.setitem(_registry, "az", StoreOfAnotherName)
    monkeypatch.setattr(StoreOfAnotherName, "ls", refuse)
    with pytest.raises(StorageError, match=r"az://shards/a failed after 1 try: Must provide either .*account_name"):
        expand_pattern("az://shards/a")


# Reading and publishing


def test_files_are_read_and_looked_up(server, s3, tmp_path):
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


def test_credentials_are_sent_and_not_displayed(server):
    seen = []
    original = Handler.do_GET

    class Listening(Handler):
        def do_GET(self):  # noqa: N802  # the name that http.server calls
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


def test_files_are_published_atomically(s3, tmp_path):
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
    """A store of another kind: uploads are visible as they grow, and it stalls or breaks on demand."""

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


def test_other_stores_rename_a_finished_upload(shaky, tmp_path):
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


def test_a_stalled_store_is_tried_again(shaky, tmp_path):
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
