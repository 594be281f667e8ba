"""The hub's libraries: whether a name is a folder here or a repository, known before they ask for half a minute; and
their bars, silenced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlad.utils.errors import UserError

NOT_THERE = (
    "is neither a folder here nor in reach on the hub; check the name and the network, or download it elsewhere"
    " (hf download NAME --local-dir FOLDER) and give that folder"
)


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Inside the block diffusers and transformers draw no bars for the parts and weights that they read and write.

    Downloads keep theirs. Only for what takes a moment: our commands have bars for what does not.
    """
    # Those that are loaded by now: this room imports neither. Not by their own switches: transformers' takes the hub's
    # bars along, and says nothing of how it was.
    found = (sys.modules.get(f"{name}.utils.logging") for name in ("diffusers", "transformers"))
    before = [(library, active) for library in found if (active := getattr(library, "_tqdm_active", None)) is not None]
    for library, _ in before:
        vars(library)["_tqdm_active"] = False
    try:
        yield
    finally:
        for library, active in before:
            vars(library)["_tqdm_active"] = active


def check_reachable(option: str, path: str, revision: str | None, file: str) -> None:
    """Raises UserError where `path` is no folder here, not in the hub's cache, and cannot be had from the hub.

    `file` is one that every repository of the kind has. It is asked for once: without a network the libraries try six
    times, 23 seconds a file. A hub that answers, but is busy, is left to them. `option` names the path.
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
            f"{option}: {path} is given only to those who accept its licence; do so on its page on the hub, then run:"
            " hf auth login."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{option}: {path} has no revision {revision}; name a commit or tag that it has.") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{option}: {path} {NOT_THERE}.") from error
    except HfHubHTTPError:
        return
    except Exception as error:  # of the connection, or a name that is none: each of the client's own kind
        raise UserError(f"{option}: {path} {NOT_THERE}.") from error
