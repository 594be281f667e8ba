"""Models that are neither a local folder nor reachable, and the hub's own errors, as user errors."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from vlad.models.autoencoder import build_autoencoder
from vlad.models.options import AutoencoderOptions, LVLMOptions, StableDiffusionOptions
from vlad.models.stable_diffusion import load_stable_diffusion
from vlad.models.text_encoder.lvlm_loading import load_lvlm, load_vision_encoder
from vlad.utils.errors import UserError
from vlad.utils.hub import check_reachable


@pytest.mark.parametrize(
    ("option", "load"),
    [
        ("lvlm.path", lambda: load_lvlm(LVLMOptions(path="nope"))),
        ("lvlm.vision_path", lambda: load_vision_encoder(LVLMOptions(vision_path="nobody/never-uploaded"))),
        ("autoencoder.path", lambda: build_autoencoder(AutoencoderOptions(path="nope"))),
        ("stable_diffusion.path", lambda: load_stable_diffusion(StableDiffusionOptions(path="nobody/nothing"))),
    ],
)
def test_without_a_network_a_name_is_refused_after_one_attempt(
    option: str, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    def wait(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s to try again")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", wait)
    with pytest.raises(
        UserError, match=rf"^{option}: no.* is neither a local folder nor reachable .* give that folder\.$"
    ):
        load()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (GatedRepoError, r"accept its licence; do so on its page on the hub, then run: hf auth login\."),
        (RevisionNotFoundError, r"some/model has no revision v9; name a commit or tag that it has\."),
        (RepositoryNotFoundError, "neither a local folder nor reachable"),
        (HfHubHTTPError, None),  # busy: the libraries know how to wait
    ],
)
def test_errors_of_the_hub_become_user_errors(
    kind: type[HfHubHTTPError], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(url: str) -> None:
        assert url.endswith("/some/model/resolve/v9/config.json")
        response = SimpleNamespace(headers={}, request=None, status_code=503)
        raise kind("no", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    if said is None:
        check_reachable("lvlm.path", "some/model", "v9", "config.json")
        return
    with pytest.raises(UserError, match=said):
        check_reachable("lvlm.path", "some/model", "v9", "config.json")


def test_the_hub_is_not_asked_for_local_or_cached_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", asked.append)
    check_reachable("lvlm.path", str(tmp_path), None, "config.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    check_reachable("lvlm.path", "some/model", None, "config.json")
    assert asked == []
