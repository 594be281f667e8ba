"""Building shards on a Ray cluster, through Ray Data (the extra `ray`).

    refs -> one row per shard -> make_shard, on every core of the cluster -> records -> this process

Rows are enumerated while others are in work, and only records come back: images go from the machine that reads them
straight to the target of the shards.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import vlad
from vlad.data.importers.journal import ShardRecord
from vlad.data.importers.shard_builder import Captioner, ShardSpec, make_shard, remaining_refs
from vlad.utils.errors import UserError, install_command, reason_of


def start_ray() -> None:
    """Joins the cluster that RAY_ADDRESS names, else starts Ray on this machine.

    Raises UserError without ray, and where there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--run-on ray needs the library 'ray' ({error}); run: {install_command('ray')}.") from error
    if not ray.is_initialized():
        try:
            # All machines run the same code as this one.
            ray.init(
                runtime_env={"py_modules": [str(Path(vlad.__file__).parent)]},
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False,
            )
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            where = os.environ.get("RAY_ADDRESS")
            asked = f"the cluster at RAY_ADDRESS={where} does not answer" if where else "Ray does not start here"
            raise UserError(
                f"--run-on ray: {asked} ({reason_of(error)}); correct that, or leave out --run-on ray."
            ) from error


def make_shards_on_ray(
    spec: ShardSpec, target: Path | str, done: dict[int, ShardRecord], workers: int | None = None
) -> Iterator[ShardRecord]:
    """Makes every shard that is not in `done`, in any order; `target` must be reachable from all machines.

    `workers` shards are made at a time (None: one per core of the cluster). Raises UserError like
    `make_shards_locally`.
    """
    import ray
    from ray.data import DataContext, read_datasource
    from ray.exceptions import RayError, RayTaskError

    context = DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    # With as many cores as the makers, Ray would fuse both into one task, and work on one core.
    rows = read_datasource(_shard_rows(spec, done), num_cpus=0)
    records = rows.map(
        _ShardMaker,
        fn_constructor_args=(spec, target),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_cpus=1,
    )
    try:
        for row in records.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            yield ShardRecord.from_json(row["record"])
    except RayTaskError:  # a bug, with its traceback
        raise
    except RayError as error:
        raise UserError(
            f"Ray has lost a process that made a shard ({reason_of(error)}), most likely for want of memory; run the"
            " same command again with fewer --workers: it resumes after the last finished shard."
        ) from error


def _shard_rows(spec: ShardSpec, done: dict[int, ShardRecord]) -> Any:
    """A Ray data source that enumerates the images as it is read."""
    import pyarrow as pa
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class ShardRows(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *unused: Any, **also_unused: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

            def read() -> Iterable[pa.Table]:
                number = -1
                try:
                    groups = itertools.groupby(
                        remaining_refs(spec, done), lambda ref: ref.number // spec.samples_per_shard
                    )
                    for number, refs in groups:
                        yield pa.table({"number": [number], "refs": [pickle.dumps(list(refs))], "error": [""]})
                except UserError as error:  # raised, Ray would wrap it and try again
                    yield pa.table({"number": [number], "refs": [b""], "error": [str(error)]})

            return [ReadTask(read, metadata)]

    return ShardRows()


class _ShardMaker:
    """Makes the shard of a row, on one core with an engine of its own."""

    def __init__(self, spec: ShardSpec, target: Path | str) -> None:
        self._spec, self._target = spec, target
        self._annotate = spec.annotator()
        self._captioner: Captioner | None = None
        self._unusable = ""  # why nothing can be made here; raised now, it would end in a traceback of Ray
        try:
            self._captioner = None if spec.build_captioner is None else spec.build_captioner()
        except UserError as error:
            self._unusable = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["error"] or self._unusable:
            return {"record": "", "error": row["error"] or self._unusable}
        refs = pickle.loads(row["refs"])  # of this program's own rows
        pairs = ((ref, self._annotate(ref)) for ref in refs)
        try:
            if isinstance(self._target, Path):
                record = self._make(row["number"], pairs, self._target)
            else:
                with tempfile.TemporaryDirectory() as workplace:
                    record = self._make(row["number"], pairs, Path(workplace))
        except UserError as error:
            return {"record": "", "error": str(error)}
        return {"record": record.to_json(), "error": ""}

    def _make(self, number: int, pairs: Any, workplace: Path) -> ShardRecord:
        return make_shard(number, pairs, self._captioner, self._spec.caption_batch, self._target, workplace)
