"""per_image.parquet: a row an image, with its target texts, what was read, and every protocol's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlad.eval.protocols.protocol import SCORING_MODES, Protocol
from vlad.utils.errors import UserError

ROWS_AT_ONCE = 1000  # held in memory


def check_parquet() -> None:
    """Raises UserError where the library that writes the table is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError("per_image.parquet needs pyarrow; run: pip install 'vlad-diffusion[eval]'.") from error


class PerImageTable:
    """Writes the table a thousand rows at a time, and gives it its name once it is whole."""

    def __init__(self, path: Path, protocols: Sequence[Protocol]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        texts, truths = pa.list_(pa.string()), pa.list_(pa.bool_())
        columns = [(name, pa.string()) for name in ("id", "subset", "prompt", "file", "status")]
        columns[1:1] = [("sample", pa.int64())]
        columns += [("wanted", texts), ("read", texts), ("string_read", truths), ("string_read_in_case", truths)]
        columns += [
            (f"{protocol.name}.{mode}.{metric}", pa.float64())
            for protocol in protocols
            for mode in SCORING_MODES
            for metric in protocol.metrics
        ]
        self.path, self.partial = path, path.with_suffix(".parquet.partial")
        self.writer = parquet.ParquetWriter(self.partial, pa.schema(columns))
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> PerImageTable:
        return self

    def add(self, row: dict[str, Any]) -> None:
        """One more row."""
        self.rows.append(row)
        if len(self.rows) == ROWS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.writer.schema))
        self.rows = []

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.rows and kind is None:
            self._write()
        self.writer.close()
        if kind is None:
            self.partial.replace(self.path)
        else:
            self.partial.unlink()
