"""Decompressing whole files: gzip, bz2, xz, and zstd with the extra `zst`."""

from __future__ import annotations

import shutil
from typing import BinaryIO

from vlad.utils.errors import UserError, install_command, reason_of


def decompress(stream: BinaryIO, kind: str, unpacked: BinaryIO) -> None:
    """Writes what a stream of compression `kind` holds to another.

    Raises OSError, and UserError where there is no decompressor.
    """
    from fsspec.compression import compr

    if kind not in compr:
        raise UserError(
            f"{getattr(stream, 'name', 'The file')} is compressed with {kind}, for which a package is missing; unpack"
            f" it, or run: {install_command('zst')}."
        )
    stream.seek(0)
    try:
        with compr[kind](stream, mode="rb") as plain:
            shutil.copyfileobj(plain, unpacked, 1 << 20)
    except OSError:
        raise
    except Exception as error:  # each decompressor has its own
        raise OSError(reason_of(error)) from error
    unpacked.seek(0)
