"""Hugging Face Hub: a quick check whether a model is reachable, and hiding the libraries' progress bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlad.utils.errors import UserError

NOT_FOUND = (
    "is neither a local folder nor reachable on the hub; check the name and the network, or download it elsewhere"
    " (hf download NAME --local-dir FOLDER) and give that folder"
)


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Hides the progress bars of diffusers and transformers for reading and writing weights, not those of downloads."""
    # Only in libraries that are already imported. Not by their own functions: that of transformers also hides the
    # hub's bars, and neither tells the previous state.
    loaded = (sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers"))
    before = [(library, active) for library in loaded if (active := getattr(library, "_tqdm_active", None)) is not None]
    for library, _ in before:
        vars(library)["_tqdm_active"] = False
    try:
        yield
    finally:
        for library, active in before:
            vars(library)["_tqdm_active"] = active


def check_reachable(option: str, path: str, revision: str | None, file: str) -> None:
    """Raises UserError where `path` is not a local folder, not in the hub's cache, and cannot be downloaded.

    `file` is one that every repository of the kind has; `option` names the path in messages. The hub is asked once:
    without a network, the libraries would retry six times, 23 seconds a file. A busy hub is left to their retries.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if Path(path).exists():
        return
    try:
        if isinstance(try_to_load_from_cache(path, file, revision=revision), str):
            return
        get_hf_file_metadata(hf_hub_url(path, file, revision=revision))
    except GatedRepoError as error:
        raise UserError(
            f"{option}: {path} requires that you accept its licence; do so on its page on the hub, then run:"
            " hf auth login."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{option}: {path} has no revision {revision}; name a commit or tag that it has.") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{option}: {path} {NOT_FOUND}.") from error
    except HfHubHTTPError:
        return
    except Exception as error:  # connection errors and invalid names have no common class
        raise UserError(f"{option}: {path} {NOT_FOUND}.") from error
