"""The hub's libraries: whether a name is a folder here or a repository, known before they ask for half a minute; and
their bars, silenced."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlad.errors import UserError

NOT_THERE = (
    "is neither a folder here nor in reach on the hub; check the name and the network, or download it elsewhere"
    " (hf download NAME --local-dir FOLDER) and give that folder"
)


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside the block diffusers and transformers draw no bars for the parts and weights that they read and write.

    Downloads keep theirs. Only for what takes a moment: our commands have bars for what does not.
    """
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    # Their own switches leave nothing to restore: transformers' takes the hub's bars along.
    before = [library._tqdm_active for library in libraries]
    for library in libraries:
        library._tqdm_active = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for library, active in zip(libraries, before, strict=True):
            library._tqdm_active = active  # type: ignore[attr-defined]


def refuse_out_of_reach(option: str, path: str, revision: str | None, file: str) -> None:
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
