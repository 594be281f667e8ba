"""The shard cache: each remote shard is fetched once, whole, by one process at a time, within a bound."""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pytest
from storage_servers import SHARD, SUM, cache, left
from torch.utils.data import DataLoader, Dataset

from vlad.data.dataset import ShardBatches
from vlad.data.options import FetchOptions, StreamOptions, SyntheticOptions
from vlad.data.shard_sets import open_sets
from vlad.data.shards.writer import write_manifest, write_shards
from vlad.data.signs import render_sign
from vlad.data.storage.locations import expand_pattern, publish, read_bytes
from vlad.data.storage.retries import StorageError
from vlad.utils.errors import UserError


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
def test_transient_errors_are_tried_again(server, tmp_path, plan):
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
def test_a_lasting_error_names_the_shard_the_reason_and_the_tries(server, tmp_path, behaviour, said):
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
def test_permanent_errors_are_not_tried_again(server, tmp_path, answer):
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
    with pytest.raises(StorageError, match="does not give its length"), cache(tmp_path).local(server.url + "/a/0.tar"):
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


def test_a_crashed_download_blocks_no_other_process(server, tmp_path):
    server.plans["/a/0.tar"] = ["slow"]
    code = (
        "import sys; from vlad.data.storage.shard_cache import *\n"
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


def test_an_abandoned_download_is_removed_first(server, tmp_path):
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
    """Item number i is the digest of shard i, read through the cache as a run does."""

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
    urls = [*expand_pattern("s3://shards/a"), *(f"{server.url}/{name}" for name in names)]
    with cache(tmp_path / "parent").local(urls[0]):
        loader = DataLoader(
            Shards(urls, tmp_path / "workers"), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        assert list(loader) == [SUM] * 8
    assert read_bytes(urls[0]) == SHARD  # the parent's own still works


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_one_sentence(server, tmp_path, workers):
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
    """A worker that was forked while its parent read a shard neither holds its lease nor ends it."""
    server.files["/a/1.tar"] = SHARD
    shards = cache(tmp_path, max_bytes=len(SHARD))
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    with contextlib.ExitStack() as held:
        path = held.enter_context(shards.local(server.url + "/a/0.tar"))
        forgetful = context.Process(target=held.close)
        forgetful.start()
        forgetful.join()
        assert len(list(tmp_path.glob("*.lease"))) == 1
        process = context.Process(target=stop.wait, args=(30,))
        process.start()
    with shards.local(server.url + "/a/1.tar"):
        assert not path.exists()
    stop.set()
    process.join()


def test_the_lease_of_a_dead_reader_does_not_keep_a_shard(server, tmp_path):
    server.files["/a/1.tar"] = SHARD
    shards = cache(tmp_path, max_bytes=len(SHARD))
    code = (
        "import sys, time; from vlad.data.storage.shard_cache import *\n"
        "with ShardCache(FetchOptions(sys.argv[1])).local(sys.argv[2]): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), server.url + "/a/0.tar"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.communicate()
    (first,) = tmp_path.glob("*.shard")
    with shards.local(server.url + "/a/1.tar"):
        assert not first.exists()
        assert len(list(tmp_path.glob("*.lease"))) == 1


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
        image_pixels=16, resolutions=(16, 24), batch_size=4, shuffle_window=8, workers=2, fetch=fetch
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
        list(ShardBatches(sets, StreamOptions(image_pixels=16, batch_size=4, fetch=fetch), 1))
