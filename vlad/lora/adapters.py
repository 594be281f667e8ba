"""LoRA adapters through peft, on the LVLM and on the UNets. The only room that imports peft."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlad.lora.fingerprint import module_fingerprint
from vlad.lora.options import LoraOptions
from vlad.lora.quantise import quantise
from vlad.utils.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # the names that peft gives them
MARKS = "base_marks.json"  # ours: peft records the base's name, but a folder of that name can hold other weights
MARKS_PER_LAYER = 16
ABOUT = "vlad"  # our entry in the head of a safetensors file
DIFFUSERS_WEIGHTS, DIFFUSERS_OPTIONS = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"


def add_adapter(
    module: nn.Module,
    options: LoraOptions,
    targets: tuple[str, ...],
    base_id: str,
    revision: str | None = None,
    among: Collection[str] | None = None,
    besides: Collection[str] = (),
) -> PeftModel:
    """The module with fresh adapters on its `targets`; all else is frozen. B starts at zero: nothing changes yet.

    `among`: the names of the modules that may be adapted (what nobody reads cannot be trained); None for all.
    `besides`: names of further modules to adapt. Raises UserError when a target matches no module.
    """
    modules = dict(module.named_modules())
    names = [
        name
        for name, child in modules.items()
        if isinstance(child, nn.Linear | nn.Conv2d) and (among is None or name in among)
    ]
    if targets or not besides:
        matching(names, targets)
    marks = {name: _marks(modules[name].weight) for name in (*names, *besides)}
    about = BaseAbout(base_id, revision, module_fingerprint(module), marks)
    if options.base_bits is not None:
        quantise(module, options.base_bits)
    chosen = [name for name in names if any(_matches(name, target) for target in targets)] + sorted(besides)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        use_dora=options.dora,
        target_modules=list(targets) if among is None and not besides else chosen,
        revision=revision,
    )
    model = get_peft_model(module, config)
    config.base_model_name_or_path = base_id  # only now: peft has just put the module's own name there
    model.base_about = about
    return model


@dataclass(frozen=True)
class BaseAbout:
    """What an adapter knows of the module that it is put on, as that was before it was quantised."""

    id: str
    revision: str | None
    fingerprint: str
    # A few weights of every layer that could be adapted, by its name.
    marks: dict[str, list[float]]


def base_of(model: PeftModel) -> BaseAbout:
    """What is known of the base of a model that `add_adapter` made."""
    about: BaseAbout = model.base_about
    return about


def save_adapter(model: PeftModel, directory: Path, about: dict[str, Any] | None = None) -> None:
    """Writes the adapter in peft's format, with marks of its base, and proves that it comes back.

    `adapter_config.json` (base model and revision inside), `adapter_model.safetensors` with the base's fingerprint and
    `about` (plain values) as JSON in its metadata under "vlad", and `base_marks.json`, a few weights of every adapted
    layer. The files are read into fresh layers beside the trained ones: every key is there,
    every tensor equal, and so is what each layer makes of random input. Raises RuntimeError otherwise, and when the
    adapters of a target are all zero: nothing has trained them.
    """
    # peft would ask the hub whether the base's vocabulary has grown; embeddings are never adapted here.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    base = base_of(model)
    marks = {name: base.marks[name] for name, _ in _adapted_layers(model)}
    _add_metadata(
        directory / WEIGHTS,
        {"base": base.id, "revision": base.revision, "fingerprint": base.fingerprint, **(about or {})},
    )
    (directory / MARKS).write_text(json.dumps(marks, indent=1), encoding="utf-8")
    trained = {name: value for name, value in model.state_dict().items() if _of_adapter(name)}
    keys = _stored_names(directory)
    if keys.keys() != trained.keys():
        raise RuntimeError(f"{directory} has other keys than the trained adapter: {_listed(keys.keys() ^ trained)}")
    with safe_open(str(directory / WEIGHTS), framework="pt") as stored:
        differing = [name for name, key in keys.items() if not torch.equal(stored.get_tensor(key), trained[name].cpu())]
    if differing:
        raise RuntimeError(f"{directory} does not hold what was trained: {_listed(differing)} differ")
    if untrained := _untrained_targets(model):
        raise RuntimeError(f"nothing was trained: the B matrices of {_listed(untrained)} are all zero")
    _prove_outputs(model, directory)


def _add_metadata(path: Path, about: dict[str, Any]) -> None:
    """Puts plain values as JSON into the head of a safetensors file."""
    with safe_open(str(path), framework="pt") as stored:
        head = stored.metadata() or {}
    save_file(load_file(path), path, {**head, ABOUT: json.dumps(about)})


def adapter_about(directory: Path) -> dict[str, Any]:
    """What `save_adapter` has written into the head of an adapter's file; empty for one that peft alone has written."""
    with safe_open(str(directory / WEIGHTS), framework="pt") as stored:
        found = json.loads((stored.metadata() or {}).get(ABOUT, "{}"))
    return found if isinstance(found, dict) else {}


def write_for_diffusers(model: PeftModel, directory: Path) -> None:
    """A UNet's adapter once more, as `load_lora_weights` and `load_lora_adapter` of diffusers read it: keys that begin
    with "unet." in one file, with the adapter's options in its head."""
    config = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in model.peft_config["default"].to_dict().items()
    }
    tensors = {
        f"unet.{name.removeprefix('base_model.model.')}": value
        for name, value in load_file(directory / WEIGHTS).items()
    }
    options = json.dumps({f"unet.{name}": value for name, value in config.items()}, default=str)
    save_file(tensors, directory / DIFFUSERS_WEIGHTS, {"format": "pt", DIFFUSERS_OPTIONS: options})


def _untrained_targets(model: PeftModel) -> list[str]:
    """The targets, by their last names, whose B matrices are all zero."""
    moved: dict[str, bool] = {}
    for name, value in model.state_dict().items():
        if ".lora_B." in name:
            target = name.split(".lora_B.")[0].rpartition(".")[2]
            moved[target] = moved.get(target, False) or bool(value.any())
    return [target for target, has_moved in moved.items() if not has_moved]


PROOF = "proof"  # the name of the adapter that is read back beside the trained one, "default"


@torch.no_grad()
def _prove_outputs(model: PeftModel, directory: Path) -> None:
    """Reads the adapter back into fresh layers on the same base and compares each layer's outputs; then removes them.

    The model is left as it was: its random state, its modes, what wants gradients.
    """
    wants = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.random.fork_rng():
        model.load_adapter(str(directory), adapter_name=PROOF, torch_device=str(next(model.parameters()).device))
        model.eval()
        differing = []
        for name, layer in _adapted_layers(model):
            base = layer.get_base_layer()
            shape = (2, base.in_features) if isinstance(base, nn.Linear) else (1, base.in_channels, 8, 8)
            # Quantised weights are no numbers to compute with.
            dtype = base.weight.dtype if base.weight.is_floating_point() else torch.float32
            x = torch.randn(shape, device=base.weight.device, dtype=dtype)
            outputs = []
            for adapter in ("default", PROOF):
                layer.set_adapter(adapter)
                outputs.append(layer(x))
            layer.set_adapter("default")
            if not torch.equal(*outputs):
                differing.append(name)
        model.delete_adapter(PROOF)
        model.set_adapter("default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wants[name])
    for name, module in model.named_modules():
        module.training = modes[name]
    if differing:
        raise RuntimeError(f"the adapter in {directory} gives other outputs than the trained one: {_listed(differing)}")


def load_adapter(module: nn.Module, directory: Path) -> nn.Module:
    """The module with the adapter of `directory` merged into its weights.

    Raises UserError when the folder holds no adapter, or one whose tensors, or whose base, are not exactly those that
    fit, with what differs.
    """
    return attach_adapter(module, directory).merge_and_unload()


@torch.no_grad()
def merge_adapters(module: nn.Module, adapters: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """Merges adapters into the module's weights, W + sum_k w_k (W_k - W) with W_k the weights that adapter k makes.

    Every adapter is compared with the base as it was before any was merged. Returns the weights as they were, for
    `restore_weights`. Raises UserError as `load_adapter` does; the module is then as it was.
    """
    before: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    try:
        for directory, weight in adapters:
            model = attach_adapter(module, directory)
            touched = [f"{name}.weight" for name, _ in _adapted_layers(model)]
            own = {
                name.replace(".base_layer.", "."): value for name, value in model.get_base_model().named_parameters()
            }
            before |= {name: own[name].detach().clone() for name in touched if name not in before}
            model.merge_and_unload()
            weights = dict(module.named_parameters())
            for name in touched:
                # One adapter at its full weight is taken as it is: the difference would round.
                whole = len(adapters) == 1 and weight == 1
                change = weight * (weights[name] - before[name]) if not whole else weights[name].detach().clone()
                sums[name] = sums[name] + change if name in sums else (change if whole else before[name] + change)
            restore_weights(module, before)
    except UserError:
        restore_weights(module, before)
        raise
    restore_weights(module, sums)
    return before


@torch.no_grad()
def restore_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts weights (by the parameters' names) into the module."""
    parameters = dict(module.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def attach_adapter(module: nn.Module, directory: Path) -> PeftModel:
    """The module with the adapter of `directory` beside its weights: `merge_adapter()` and `unmerge_adapter()` move
    it in and out. Raises UserError as `load_adapter` does."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise UserError(
                f"There is no adapter in {directory} ({name} is missing); give the adapter folder of a LoRA run."
            )
    remedy = f"load it onto the base it was trained on: {adapter_base(directory)}"
    fingerprint = None if (directory / MARKS).is_file() else module_fingerprint(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an older name
            model = PeftModel.from_pretrained(module, str(directory))
        stored = _stored_names(directory).keys()
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[-1].strip()  # torch's first line is only a head
        raise UserError(f"The adapter in {directory} does not fit this model ({reason}); {remedy}.") from error
    # peft only warns of what is missing, and leaves out what it does not know.
    wanted = {name for name in model.state_dict() if _of_adapter(name)}
    if differing := sorted(stored ^ wanted):
        model.unload()  # peft has put its layers into the module itself
        sides = [f"{name} ({'not in the adapter' if name in wanted else 'not in this model'})" for name in differing]
        raise UserError(
            f"The adapter in {directory} does not fit this model: {len(differing)} tensors differ:"
            f" {_listed(sides)}; {remedy}."
        )
    try:
        _compare_base(model, directory, fingerprint, remedy)
    except UserError:
        model.unload()
        raise
    return model


def _compare_base(model: PeftModel, directory: Path, fingerprint: str | None, remedy: str) -> None:
    """Raises UserError when the weights under the adapter are not those it was trained on (a 64th apart or more:
    a base in half precision is the same base). `fingerprint`: of the base, where the adapter has lost its marks."""
    path = directory / MARKS
    if fingerprint is not None:
        wanted = adapter_about(directory).get("fingerprint", fingerprint)  # peft alone says none: its keys have to do
        if fingerprint != wanted:
            raise UserError(
                f"The adapter in {directory} was trained on another base than this model (fingerprint {wanted}, not"
                f" {fingerprint}), or on the same in another precision, which {MARKS} would tell, and that is missing;"
                f" copy the whole folder, and {remedy}."
            )
        return
    try:
        marks = {name: [float(value) for value in row] for name, row in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; copy the adapter's folder again.") from error
    differing = []
    for name, layer in _adapted_layers(model):
        now, before = torch.tensor(_marks(layer.get_base_layer().weight)), torch.tensor(marks.get(name, []))
        if now.shape != before.shape or (now - before).abs().max() > before.abs().max() / 64:
            differing.append(name)
    if differing:
        raise UserError(
            f"The adapter in {directory} was trained on other weights than this model's: {len(differing)} layers"
            f" differ: {_listed(differing)}; {remedy}."
        )


def _adapted_layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    """The layers with adapters, by their names in the base."""
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def _marks(weight: Tensor) -> list[float]:
    """A few of the base's weights, spread over the matrix."""
    weight = weight.detach().flatten()
    places = torch.linspace(0, weight.numel() - 1, MARKS_PER_LAYER, dtype=torch.float64).long()
    return weight[places.to(weight.device)].float().tolist()


def _of_adapter(name: str) -> bool:
    return ".lora_" in name


def _listed(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def has_adapter(module: nn.Module | None) -> TypeGuard[PeftModel]:
    """Whether the module carries adapters."""
    return isinstance(module, PeftModel)


def is_trained(model: PeftModel) -> bool:
    """Whether some B matrix has left zero in every target: else `save_adapter` takes it for untrained."""
    return not _untrained_targets(model)


def merged(module: nn.Module) -> nn.Module:
    """The module with its adapters merged into a copy of its weights; without adapters, the module itself."""
    return copy.deepcopy(module).merge_and_unload() if isinstance(module, PeftModel) else module


def adapter_base(directory: Path) -> str:
    """The id of the model that the adapter was trained on. Raises UserError when its config cannot be read."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{directory / CONFIG} is not an adapter's config; give the folder of a LoRA run.") from error


def matching(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The names that some target matches. Raises UserError, with what there is, for a target that matches none."""
    wrong = [target for target in targets if not any(_matches(name, target) for name in names)]
    if wrong or not targets:
        candidates = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(
            f"lora: no module matches {', '.join(wrong) or 'an empty list'}; this model has {', '.join(candidates)}."
        )
    return [name for name in names if any(_matches(name, target) for target in targets)]


def _matches(name: str, target: str) -> bool:
    """Whether a module's name is a target's, or ends with it."""
    return name == target or name.endswith(f".{target}")


def _stored_names(directory: Path) -> dict[str, str]:
    """The model's names of the tensors on disk, each with its name in the file (peft leaves the adapter's own out)."""
    with safe_open(str(directory / WEIGHTS), framework="pt") as stored:
        names = list(stored.keys())
    return {
        name.replace(".lora_A.", ".lora_A.default.")
        .replace(".lora_B.", ".lora_B.default.")
        .replace(".lora_magnitude_vector", ".lora_magnitude_vector.default.weight"): name
        for name in names
    }
