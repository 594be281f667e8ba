"""The wheel, installed away from the checkout: the command, the bundled configs, the type marker."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("vlad", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(source / "dist"), "."]
    subprocess.run(wheel, cwd=source, check=True)
    (built,) = (source / "dist").glob("vlad_diffusion-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(built)], check=True)
    return target


def test_the_command_finds_bundled_configs_from_any_folder(installed: Path, tmp_path: Path) -> None:
    def call(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        line = [sys.executable, *command]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    vlad = str(installed / "bin" / "vlad")
    assert "Trains every stage" in call(vlad, "--help").stdout
    told = call(vlad, "train", "tiny", "--name", "x")
    assert (told.returncode, told.stderr) == (
        2,
        "error: vlad train has no option --name; an option of the config has no dashes: write name=x.\n",
    )
    told = call(vlad, "train", "tiny", "data.shards=nowhere")
    assert told.returncode == 2
    assert "nowhere" in told.stderr
    names = "*(vlad.load_config(name).name for name in ('tiny_edit', 'configs/tiny.yaml'))"
    program = f"import vlad; print(vlad.__file__, {names})"
    assert call("-c", program).stdout.split() == [str(installed / "vlad" / "__init__.py"), "tiny_edit", "tiny"]
    assert (installed / "vlad" / "py.typed").is_file()
    assert (installed / "vlad" / "configs" / "eval" / "vlad.yaml").is_file()
