"""What ends long work and is no mistake in the code: memory or disk that is full, a loader's process that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vlad.training.checkpoint import is_full_disk
from vlad.utils.errors import UserError, reason_of


@contextmanager
def ending_told(label: str, directory: Path) -> Iterator[None]:
    """Raises UserError in the place of what says that the memory, or the disk of `directory`, has no room; or that the
    system has ended a process of the loader."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what libraries raise then has no common class
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(
                f"{label} the memory does not hold a step ({reason_of(error)}); python tools/plan.py with the same"
                " config says what would make it fit, data.batch_size first."
            ) from error
        if "DataLoader worker" in str(error):
            raise UserError(
                f"{label} a process that reads samples was lost ({reason_of(error)}), as when the machine's memory is"
                " full; lower data.workers or data.batch_size and run the same command again: it goes on from the"
                " last checkpoint."
            ) from error
        if is_full_disk(error):
            raise UserError(
                f"{label} the disk of {directory} is full ({reason_of(error)}); make room and run the same command"
                " again: it goes on from the last checkpoint."
            ) from error
        raise
