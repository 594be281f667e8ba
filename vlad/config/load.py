"""Config files: YAML with `inherit` and key=value overrides into a frozen `Config`, and back to YAML.

No OmegaConf node leaves this module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlad.config.schema import Config
from vlad.data.options import PosterOptions
from vlad.lora.options import LoraOptions
from vlad.models.options import StableDiffusionOptions
from vlad.utils.atomic_files import replaced_file
from vlad.utils.errors import UserError, did_you_mean
from vlad.utils.paths import existing_file, is_file
from vlad.utils.secrets import without_secrets

Options = TypeVar("Options")


# Options of version 0.1 whose names have changed: configs of runs that were made with it load.
RENAMED = {
    "data.picture_pixels": "data.image_pixels",
    "prior.pictures": "prior.images",
    "validation.pictures": "validation.images",
    "validation.read_pictures": "validation.read_images",
}
_RESOLVER = re.compile(r"(?P<escapes>\\*)\$\{[^}]*:")
# Sections that a config may leave out: what their options are, for messages.
OPTIONAL = {"lora": LoraOptions(), "posters": PosterOptions(), "stable_diffusion": StableDiffusionOptions("-")}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file and `key=value` overrides. Raises UserError with the place and the remedy.

    A `path` where there is no file may be a bundled config's: `tiny`, `tiny.yaml`, `configs/tiny.yaml`.
    """
    config = load_options(Config, find_config(path), overrides)
    for name, value in _numbers(config):
        if not math.isfinite(value):
            raise UserError(f"{name} must be a finite number, not {value}.")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must be from 0 to {2**32 - 1}, not {config.seed}.")
    return config


def bundled_configs() -> Path:
    """The folder of the configs that come with the code: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir())


def released_model() -> Path | None:
    """The model that comes with a checkout, models/poster; None where `vlad` is installed without it."""
    folder = Path(__file__).resolve().parents[2] / "models" / "poster"
    return folder if (folder / "model_index.json").is_file() else None


def find_config(path: Path | str) -> Path:
    """The file that `path` means: itself, or, where there is no such file, a bundled config such as tiny."""
    path = Path(path)
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    bundled = bundled_configs() / inner.parent / f"{inner.name.removesuffix('.yaml')}.yaml"
    return path if is_file(path) or not is_file(bundled) else bundled


def load_options(schema: type[Options], path: Path | str, overrides: Sequence[str] = ()) -> Options:
    """Options of any dataclass from a YAML file and overrides, with the same messages."""
    structured: Any = _structured(schema)  # type: ignore[arg-type]  # mypy: a type may be unhashable
    given = [(str(path), _read_yaml(Path(path)))]
    given += [(f"the override {override!r}", _read_override(override, schema)) for override in overrides]
    for source, options in given:
        _refuse_resolvers(OmegaConf.to_container(options), source)
        _rename_options(options)
    try:
        merged = OmegaConf.merge(structured, *(options for _, options in given))
    except OmegaConfBaseException:
        for source, options in given:  # which of them it was
            try:
                structured = OmegaConf.merge(structured, options)
            except OmegaConfBaseException as error:
                raise UserError(_explain(error, source, options, schema)) from error
        raise
    try:
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # what a value refers to is only looked up here
        raise UserError(_explain(error, str(path), given[0][1], schema)) from error
    assert isinstance(result, schema)
    return result


@lru_cache
def _structured(schema: type) -> DictConfig:
    """The schema as OmegaConf needs it, which takes longer than all else; merging copies it."""
    return OmegaConf.structured(schema)  # type: ignore[no-any-return]


def _refuse_resolvers(options: Any, source: str) -> None:
    """Raises UserError for ${oc.env:X} and other functions; references to other options, such as ${seed}, stay.

    A config from elsewhere would read this machine's variables, and what it reads is published with the run.
    """
    if isinstance(options, dict):
        for value in options.values():
            _refuse_resolvers(value, source)
    elif isinstance(options, list):
        for value in options:
            _refuse_resolvers(value, source)
    elif isinstance(options, str):
        for found in _RESOLVER.finditer(options):
            if len(found["escapes"]) % 2 == 0:
                raise UserError(
                    f"{source}: {options!r} calls a function of OmegaConf, which could read this machine's variables"
                    ' into what the run publishes; write the value itself, or give it on the command line: key="$NAME".'
                )


def _rename_options(options: DictConfig) -> None:
    """Moves the values of `RENAMED` options to today's names, in place; those of today's names stay."""
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        values = options.get(section)
        if isinstance(values, DictConfig) and key in values:
            value = values.pop(key)
            values.setdefault(new.rpartition(".")[2], value)


def _numbers(value: Any, *path: str) -> Iterator[tuple[str, float]]:
    """Every number of some options with its dotted name."""
    if is_dataclass(value):
        for entry in fields(value):
            yield from _numbers(getattr(value, entry.name), *path, entry.name)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry, *path)
    elif isinstance(value, float):
        yield ".".join(path), value


def save_config(config: Config, path: Path) -> None:
    """Writes the resolved config as YAML, without the secrets of URLs; `load_config` gives the rest back."""
    options = OmegaConf.create(_escaped(without_secrets(asdict(config))))
    with replaced_file(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(options), encoding="utf-8")


def _escaped(options: Any) -> Any:
    """The options with ${ in their texts escaped: what is resolved refers to nothing."""
    if isinstance(options, dict):
        return {name: _escaped(value) for name, value in options.items()}
    if isinstance(options, list | tuple):
        return [_escaped(value) for value in options]
    return options.replace("${", "\\${") if isinstance(options, str) else options


class _TextLoader(yaml.SafeLoader):
    """YAML whose values are text, or null: the schema says what is a number, so that 010 is 10 and `off` a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice}", node.start_mark)
        return super().construct_mapping(node, deep=True)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_override(override: str, schema: type) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or override.startswith("-"):
        raise UserError(f"{override!r} is not an override; write key=value, such as data.batch_size=32.")
    names = key.split(".")
    try:
        read = _one_text(value) if _is_text(schema, names) else yaml.load(value, _TextLoader)
    except yaml.YAMLError as error:
        raise UserError(
            f"The value of the override {override!r} is not YAML; quote it or close its brackets."
        ) from error
    for number, name in reversed(list(enumerate(names))):
        if name.isdecimal() and number:
            parent = ".".join(names[:number])
            raise UserError(f"{override!r}: {parent} is a list; override it as a whole: {parent}=[...].")
        read = {name: read}
    return OmegaConf.create(_with_home(read))


def _one_text(value: str) -> str | None:
    """A value that the schema takes as text: as it stands, without a pair of quotation marks around it; or null."""
    if value[:1] in ("'", '"') and len(value) > 1 and value[-1] == value[0]:
        return str(yaml.load(value, _TextLoader))
    return None if value in ("null", "~") else value


def _is_text(schema: type, names: Sequence[str]) -> bool:
    """Whether the option of a dotted name is text."""
    kind: Any = schema
    for name in names:
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
        alternatives = [part for part in get_args(kind) if part is not type(None)]
        if get_origin(kind) in (Union, UnionType) and len(alternatives) == 1:
            kind = alternatives[0]
    return kind is str


def _with_home(options: Any) -> Any:
    """The options with ~/ at the beginning of a text replaced by the home directory: no shell does it after a `=`."""
    if isinstance(options, dict):
        return {name: _with_home(value) for name, value in options.items()}
    if isinstance(options, list):
        return [_with_home(value) for value in options]
    return str(Path(options).expanduser()) if isinstance(options, str) and options.startswith("~/") else options


def _read_yaml(path: Path, heirs: tuple[Path, ...] = ()) -> DictConfig:
    """The file over the one that it inherits. `heirs` are the files that inherit this one."""
    if path.resolve() in heirs:
        raise UserError(f"{path} inherits itself; remove one `inherit` of the circle.")
    names = ", ".join(sorted(file.stem for file in bundled_configs().glob("*.yaml")))
    existing_file(path, "config", f"name a file, or one that comes with vlad: {names}")
    try:
        read = yaml.load(path.read_text(encoding="utf-8-sig"), _TextLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML: {reason}.") from error
    if not isinstance(read, dict):
        raise UserError(f"{path} is not a config: expected keys and values, such as name: tiny.")
    loaded = OmegaConf.create(_with_home(read))
    parent = loaded.pop("inherit", None)
    if parent is None:
        return loaded
    merged = OmegaConf.merge(_read_yaml(path.parent / str(parent), (*heirs, path.resolve())), loaded)
    assert isinstance(merged, DictConfig)
    return merged


def _explain(error: OmegaConfBaseException, source: str, options: DictConfig, schema: type) -> str:
    """OmegaConf's message as one sentence with the key's full name, and the closest known key."""
    message = str(error).splitlines()[0].rstrip(".")
    key = getattr(error, "full_key", None) or getattr(error, "key", None)
    if key is None:  # OmegaConf does not say where a section or a list went wrong, nor what stood there
        key, value = next(_refused(OmegaConf.to_container(options), schema), (None, None))
        shown = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
        message = f"{shown} does not fit here" if key else message
    unknown = re.search(r"Key '([^']+)' not in '(\w+)'", message)
    if unknown:
        parent = str(key).rpartition(".")[0]
        known = [f.name for f in fields(_options_class(parent, schema))]
        where = f" in {parent}" if parent else ""
        hint = did_you_mean(unknown.group(1), known) or f" Known: {', '.join(known)}."
        return f"{source}: there is no option {unknown.group(1)!r}{where}.{hint}"
    return f"{source}: {key}: {message}." if key else f"{source}: {message}."


def _refused(options: Any, schema: type, *path: str) -> Iterator[tuple[str, Any]]:
    """The values of nested options that the schema takes exception to, with their dotted keys."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _refused(value, schema, *path, str(name))
        return
    nested = options
    for name in reversed(path):
        nested = {name: nested}
    try:
        OmegaConf.merge(OmegaConf.structured(schema), nested)
    except OmegaConfBaseException:
        yield ".".join(path), options


def _options_class(dotted: str, schema: type) -> Any:
    """The dataclass that a dotted key names."""
    value: Any = schema()
    for name in filter(None, dotted.split(".")):
        value = getattr(value, name, None)
        if value is None and name in OPTIONAL:
            value = OPTIONAL[name]
    return type(value) if is_dataclass(value) else schema
