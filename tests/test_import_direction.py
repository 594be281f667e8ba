"""The rooms of vlad/ import one way, and a library is imported in its own room only.

Read from the sources, imports inside functions and under TYPE_CHECKING included.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "vlad").rglob("*.py"))

# A room imports itself and the rooms of lower floors; rooms of one floor do not import each other.
FLOORS = (
    ("__init__", "types", "utils"),
    ("layout", "models", "lora", "diffusion"),
    ("data", "losses", "pipeline", "reports"),
    ("config", "metrics"),
    ("training",),
    ("inference", "profiling"),
    ("eval", "webui"),
    ("cli",),
)
# They open rooms of all floors: lazily on the first use, and as a program.
FRONT_DOOR = ("__init__.py", "__main__.py")
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# Where a library may be imported: files, or folders that end in a slash.
LIBRARIES = {
    "lightning": ("training/",),
    "pytorch_lightning": (),
    "transformers": ("models/", "profiling/stand_in.py"),
    "tokenizers": ("models/text_encoder/tiny_qwen.py", "profiling/stand_in.py"),
    "huggingface_hub": ("utils/hub.py", "models/text_encoder/lvlm_loading.py", "inference/export.py"),
    "peft": ("lora/adapter_files.py", "lora/inject.py"),
    "bitsandbytes": ("lora/quantise.py", "training/optim.py"),
    "webdataset": ("data/shards/",),
    "xformers": ("models/attention.py",),
    "fsspec": ("data/storage/object_stores.py", "data/storage/compression.py"),
    "s3fs": (),
    "filelock": ("utils/locks.py", "data/storage/shard_cache.py"),
    "tenacity": ("data/storage/retries.py",),
    "shapely": ("layout/polygons.py",),
    "psutil": ("utils/hardware.py", "profiling/measurement.py"),
    "jinja2": ("utils/html.py",),
    "omegaconf": ("config/load.py",),
    "diffusers": (
        *("models/", "diffusion/", "losses/", "pipeline/", "training/parts.py", "training/stages.py"),
        *("eval/generators/", "profiling/sampling_time.py", "profiling/stand_in.py"),
    ),
    "torchmetrics": ("eval/fidelity/",),
    "pyarrow": ("eval/benchmark/per_image_table.py", "data/importers/"),
    "rapidfuzz": ("eval/", "metrics/"),
    "rapidocr": ("metrics/ocr.py",),
    "onnx": ("losses/extra/onnx_graph.py",),
    "datasets": ("data/importers/huggingface.py",),
    "ray": ("data/importers/on_ray.py",),
    "gradio": ("webui/page.py", "eval/human_study/rating_page.py"),
    "torchvision": (),
}
OUTSIDE = ("tools", "train", "sample", "tests")


def imported_names(source: str, package: str) -> Iterator[str]:
    """The dotted names that a module of `package` imports, wherever the import stands; modules as names too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: -node.level + 1 or None] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            # `from vlad import types` imports vlad.types.
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            name = node.args[0] if node.args else None
            yield name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "<computed>"


def imports_of(path: Path) -> list[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return list(imported_names(path.read_text(encoding="utf-8"), package))


def inside(path: Path) -> str:
    """The path below vlad/, with slashes."""
    return path.relative_to(ROOT / "vlad").as_posix()


def room_of(name: str) -> str | None:
    """The room of a dotted name, None outside of vlad."""
    parts = name.split(".")
    if parts[0] != "vlad":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVELS else "__init__"


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import a.b, c
from vlad import types
from . import shards
from ..models.unet import denoise
if TYPE_CHECKING:
    from d import e
def f():
    import g
    class H:
        from i import j as k
    importlib.import_module("l.m")
    __import__(name)
"""
    assert set(imported_names(source, "vlad.data")) == {
        *(
            "a.b",
            "c",
            "vlad.types",
            "vlad.data.shards",
            "vlad.models.unet.denoise",
        ),
        *("d.e", "g", "i.j", "l.m", "<computed>"),
    }


def test_every_room_has_a_level() -> None:
    rooms = {path.relative_to(ROOT / "vlad").parts[0].removesuffix(".py") for path in MODULES}
    assert rooms - {"__main__"} == set(LEVELS)


@pytest.mark.parametrize("path", [path for path in MODULES if inside(path) not in FRONT_DOOR], ids=inside)
def test_a_module_imports_downwards_only(path: Path) -> None:
    own = inside(path).split("/")[0].removesuffix(".py")
    rooms = {room for name in imports_of(path) if (room := room_of(name)) is not None}

    assert {room for room in rooms if room != own and LEVELS[room] >= LEVELS[own]} == set()


@pytest.mark.parametrize("path", MODULES, ids=inside)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports_of(path)}

    strayed = {
        library
        for library in libraries & LIBRARIES.keys()
        if not any(
            inside(path) == place or (place.endswith("/") and inside(path).startswith(place))
            for place in LIBRARIES[library]
        )
    }
    assert strayed == set()
    assert libraries.isdisjoint((*OUTSIDE, "<computed>"))


def test_every_rule_still_stands_for_something() -> None:
    used = {name.split(".")[0] for path in MODULES for name in imports_of(path)}
    assert {library for library, places in LIBRARIES.items() if places} <= used
    assert all((ROOT / "vlad" / place).exists() for places in LIBRARIES.values() for place in places)
