"""Stand-ins for Stable Diffusion 1.5, 2.1 and XL on disk, as save_pretrained leaves the real ones."""

from pathlib import Path

import pytest

from vlad.profiling.stand_in import save_stand_in


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sd15/, sd21/ and sdxl/."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for kind in ("sd15", "sd21", "sdxl"):
        save_stand_in(kind, folder / kind)
    return folder
