"""The contract of a generator: what generates a benchmark's images; and the digest of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.types import Layout


class Generator(Protocol):
    """Generates a benchmark's images: a run, a pipeline of diffusers, a baseline."""

    batch_size: int
    takes_layouts: bool

    def settings(self) -> dict[str, Any]:
        """All that shapes its images, as plain values."""

    def refusal(self, prompt: BenchmarkPrompt, layout: Layout | None) -> str | None:
        """Why a prompt cannot be generated, in one sentence; None where it can."""

    def generate(
        self, prompts: Sequence[BenchmarkPrompt], seeds: Sequence[int], layouts: Sequence[Layout] | None
    ) -> list[tuple[Image.Image, Layout | None]]:
        """An image a prompt, with the layout that it follows where there is one."""


def weights_digest(folder: Path) -> str:
    """Twelve hexadecimal digits of a folder's weights and configs; the same wherever the folder lies."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".bin", ".json") and path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
