"""The rooms of vlad/ import one way, and a library is imported in its own room only.

Read from the sources, imports inside functions and under TYPE_CHECKING included.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "vlad").rglob("*.py"))

# A room imports itself and the rooms of lower levels; rooms of one level do not know each other.
LEVELS = {
    "__init__": 0,
    "errors": 0,
    "records": 0,
    "distributed": 0,
    "commands": 0,
    "hub": 1,
    "layout": 1,
    "text": 2,
    "data": 2,
    "diffusion": 3,
    "losses": 4,
    "adapters": 4,
    "pipeline_settings": 4,
    "pipeline_batches": 4,
    "pipeline": 5,
    "evaluation": 6,
    "training": 6,
    "config": 7,
    "adapting": 8,
    "building": 9,
    "caching": 10,
    "joint_encoders": 10,
    "memory_plan": 10,
    "monitors": 10,
    "own_pictures": 10,
    "reading_losses": 10,
    "resuming": 10,
    "stage_trainer": 11,
    "launch": 12,
    "sampling": 13,
    "performance": 13,
    "doctor": 14,
    "app": 14,
    "artists": 14,
    "ablation": 14,
    "ablation_runs": 15,
    "comparison": 14,
    "benchmarks": 15,
}
# Where a library may be imported: files, or folders that end in a slash.
LIBRARIES = {
    "lightning": ("training/", "stage_trainer.py", "launch.py"),
    "pytorch_lightning": (),
    "transformers": ("text/",),
    "tokenizers": ("text/tiny_qwen.py", "text/own.py"),
    "huggingface_hub": ("hub.py", "text/loading.py", "sampling/export.py"),
    "peft": ("text/lora.py",),
    "bitsandbytes": ("text/quantised.py", "training/optim.py"),
    "webdataset": ("data/shards.py", "data/writing.py"),
    "xformers": ("diffusion/attention.py",),
    "fsspec": ("data/stores.py",),
    "s3fs": (),
    "omegaconf": ("config.py",),
    "diffusers": (
        *("diffusion/", "losses/", "training/stages.py", "pipeline.py", "text/composition.py"),
        "performance/sampling.py",
    ),
    "torchmetrics": ("evaluation/fidelity.py",),
    "pyarrow": ("evaluation/evaluator.py", "data/importers/"),
    "rapidfuzz": ("evaluation/",),
    "rapidocr": ("evaluation/ocr.py",),
    "datasets": ("data/importers/huggingface.py",),
    "ray": ("data/importers/on_ray.py",),
    "gradio": ("app/page.py", "evaluation/rating_page.py"),
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
            # `from vlad import distributed` imports vlad.distributed.
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
from vlad import distributed
from . import shards
from ..text.prompt import parse_prompt
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
        *("a.b", "c", "vlad.distributed", "vlad.data.shards", "vlad.text.prompt.parse_prompt"),
        *("d.e", "g", "i.j", "l.m", "<computed>"),
    }


def test_every_room_has_a_level() -> None:
    rooms = {path.relative_to(ROOT / "vlad").parts[0].removesuffix(".py") for path in MODULES}
    assert rooms == set(LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=inside)
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


@pytest.mark.parametrize("name", ["train.py", "sample.py"])
def test_command_lines_stay_thin(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 80
