"""Adapters: identity at first, only they are trained, and a file that does not fit exactly is refused."""

import copy
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlad.lora.adapter_files import adapter_base, adapter_metadata, attach_adapter, save_adapter
from vlad.lora.fingerprint import module_fingerprint
from vlad.lora.inject import add_adapter
from vlad.lora.options import LVLM_TARGETS, UNET_TARGETS, LoraOptions, PartRanks
from vlad.models.options import LVLMOptions, UNetOptions
from vlad.models.text_encoder.tiny_qwen import build_tiny_qwen
from vlad.models.unet import build_unet
from vlad.utils.errors import UserError

OPTIONS = LoraOptions(rank=2, alpha=4.0)
WEIGHTS = "adapter_model.safetensors"
UNET_CHANNELS = 28  # 4 of latents, 24 of its position encoding


class Attention(nn.Module):
    """A tiny module with the names that adapters look for."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, 6)
        self.v_proj = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.v_proj(self.q_proj(x)))


def build(width: int = 6) -> Attention:
    torch.manual_seed(0)
    return Attention(width)


def train_b(model: nn.Module) -> None:
    """What training does to an adapter: B is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a trained adapter of `build()`."""
    model = add_adapter(build(), OPTIONS, ("q_proj", "v_proj"), "runs/base")
    train_b(model)
    save_adapter(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def qwen() -> nn.Module:
    torch.manual_seed(0)
    return build_tiny_qwen(LVLMOptions(hidden_size=24, layers=1, heads=2, vision_hidden_size=16, vision_layers=1))


def unet() -> nn.Module:
    return build_unet(UNetOptions(block_channels=(32,), heads=2), 4, 0, 16, 4)


def example(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Inputs of the model that `make` makes."""
    torch.manual_seed(0)
    if make is qwen:
        return {"input_ids": torch.arange(8)[None]}
    return {
        "sample": torch.randn(2, UNET_CHANNELS, 4, 4),
        "timestep": torch.tensor([3, 4]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "class_labels": torch.randn(2, 16),
    }


@pytest.mark.parametrize(("make", "targets"), [(qwen, LVLM_TARGETS), (unet, UNET_TARGETS)])
def test_new_adapters_change_nothing_and_are_all_that_is_trained(
    make: Callable[[], nn.Module], targets: tuple[str, ...]
) -> None:
    module = make().eval()
    inputs = example(make)
    with torch.no_grad():
        before = module(**inputs)[0]
        model = add_adapter(module, OPTIONS, targets, "runs/base").eval()
        assert torch.equal(model(**inputs)[0], before)

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_A" in name or "lora_B" in name for name in trained)
    for target in targets:
        assert any(f".{target}." in name for name in trained), target


def test_a_trained_adapter_survives_the_round_trip(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    model = add_adapter(build(), OPTIONS, ("q_proj", "v_proj"), "runs/base").eval()
    train_b(model)
    save_adapter(model, tmp_path)

    loaded = attach_adapter(build(), tmp_path).merge_and_unload().eval()

    with torch.no_grad():
        assert (loaded(x) - build()(x)).abs().max() > 0.1
        torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-5)
    assert not isinstance(loaded, PeftModel)  # merged: plain weights, as before
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in build().named_parameters()}
    assert adapter_base(tmp_path) == "runs/base"


def test_saving_and_loading_use_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # A name that could be a repository on the hub, and a model that has a vocabulary.
    model = add_adapter(qwen(), OPTIONS, LVLM_TARGETS, "runs/base")
    train_b(model)

    save_adapter(model, tmp_path)

    attach_adapter(qwen(), tmp_path)
    assert asked == []


@pytest.mark.parametrize(("make", "targets"), [(qwen, LVLM_TARGETS), (unet, UNET_TARGETS)])
@pytest.mark.parametrize("variant", [{}, {"rslora": True}, {"dora": True}])
def test_a_fresh_model_with_the_saved_adapter_gives_equal_outputs(
    make: Callable[[], nn.Module], targets: tuple[str, ...], variant: dict[str, bool], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    base = make()
    fresh = copy.deepcopy(base)
    model = add_adapter(base, LoraOptions(rank=2, alpha=4.0, **variant), targets, "runs/base", revision="0" * 40)
    train_b(model)
    inputs = example(make)
    save_adapter(model, tmp_path)

    with torch.no_grad():
        trained, plain = model.eval()(**inputs)[0], fresh.eval()(**inputs)[0]
        attached = attach_adapter(fresh, tmp_path).eval()
        assert (trained - plain).abs().max() > 1e-3
        assert torch.equal(attached(**inputs)[0], trained)
        attached.merge_adapter()
        torch.testing.assert_close(attached(**inputs)[0], trained, atol=1e-4, rtol=1e-4)
        attached.unmerge_adapter()
        torch.testing.assert_close(attached(**inputs)[0], trained, atol=1e-4, rtol=1e-4)
        with attached.disable_adapter():
            torch.testing.assert_close(attached(**inputs)[0], plain, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("runs/base", "0" * 40)
    assert (config["r"], config["use_rslora"], config["use_dora"]) == (
        *(2, variant.get("rslora", False), variant.get("dora", False)),
    )


def test_the_scale_is_alpha_over_rank(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    for rslora, rank, scale in (
        *((False, None, 4.0 / 2), (True, None, 4.0 / 2**0.5)),
        *((False, 3, 4.0 / 2), (True, 3, 4.0 / 3**0.5)),  # a part of another rank
    ):
        options = LoraOptions(rank=2, alpha=4.0, rslora=rslora, ranks=PartRanks(lvlm=rank)).of_part("lvlm")
        model = add_adapter(build(), options, ("q_proj",), "runs/base")
        train_b(model)
        layer = model.base_model.model.q_proj
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(layer(x), layer.base_layer(x) + scale * x @ a.T @ b.T)


def test_only_allowed_modules_are_adapted() -> None:
    model = add_adapter(qwen(), OPTIONS, ("q_proj",), "base", allowed={"language_model.layers.0.self_attn.q_proj"})
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"base_model.model.language_model.layers.0.self_attn.q_proj"}
    with pytest.raises(UserError, match="no module matches q_proj; this model has k_proj"):
        add_adapter(qwen(), OPTIONS, ("q_proj",), "base", allowed={"language_model.layers.0.self_attn.k_proj"})


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = add_adapter(build(), LoraOptions(rank=2, dropout=0.5), ("q_proj", "v_proj"), "runs/base").train()
    train_b(model)
    model.base_model.model.norm.eval()
    next(parameter for name, parameter in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    before = (
        {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        torch.get_rng_state(),
        {name: id(value) for name, value in model.named_parameters()},  # an optimiser still holds them
    )

    save_adapter(model, tmp_path)

    after = {name: (value, value.requires_grad) for name, value in model.named_parameters()}
    assert after.keys() == before[0].keys()
    assert all(torch.equal(after[name][0], value) and after[name][1] == w for name, (value, w) in before[0].items())
    assert {name: module.training for name, module in model.named_modules()} == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert {name: id(value) for name, value in model.named_parameters()} == before[3]
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: {name: value + 1e-6 for name, value in tensors.items()}, "does not hold what was trained"),
        (lambda tensors: dict(list(tensors.items())[1:]), "has other keys than the trained adapter: .*q_proj.lora_A"),
    ],
)
def test_a_damaged_save_stops_the_run(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = PeftModel.save_pretrained

    def save_damaged(self: PeftModel, directory: str, **options: object) -> None:
        save(self, directory, **options)
        save_file(damage(load_file(Path(directory) / WEIGHTS)), Path(directory) / WEIGHTS)

    monkeypatch.setattr(PeftModel, "save_pretrained", save_damaged)
    model = add_adapter(build(), OPTIONS, ("q_proj", "v_proj"), "runs/base")
    train_b(model)
    with pytest.raises(RuntimeError, match=message):
        save_adapter(model, tmp_path)


def test_a_save_with_another_scale_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Equal tensors, and yet another function: only the outputs show it.
    save = PeftModel.save_pretrained

    def save_changed(self: PeftModel, directory: str, **options: object) -> None:
        save(self, directory, **options)
        path = Path(directory) / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 5.0}))

    monkeypatch.setattr(PeftModel, "save_pretrained", save_changed)
    model = add_adapter(build(), OPTIONS, ("q_proj", "v_proj"), "runs/base")
    train_b(model)
    with pytest.raises(RuntimeError, match="gives other outputs than the trained one: q_proj, v_proj"):
        save_adapter(model, tmp_path)


def test_an_untrained_target_is_not_published(tmp_path: Path) -> None:
    model = add_adapter(build(), OPTIONS, ("q_proj", "v_proj"), "runs/base")
    model.base_model.model.q_proj.lora_B["default"].weight.data.fill_(1.0)
    with pytest.raises(RuntimeError, match="the B matrices of v_proj are all zero"):
        save_adapter(model, tmp_path)


def test_a_base_of_the_same_shape_with_other_weights_is_refused(adapter: Path) -> None:
    other = build()
    other.v_proj.weight.data += 0.1
    with pytest.raises(UserError, match=r"on other weights than this model's: 1 layers differ: v_proj; "):
        attach_adapter(other, adapter)
    attach_adapter(build().to(torch.bfloat16), adapter)  # the same base in half precision


def test_without_base_marks_the_fingerprint_is_compared_if_there_is_one(adapter: Path) -> None:
    (adapter / "base_marks.json").write_text("[1]")
    with pytest.raises(UserError, match=r"base_marks\.json is damaged"):
        attach_adapter(build(), adapter)
    (adapter / "base_marks.json").unlink()
    attach_adapter(build(), adapter)
    other = build()
    other.v_proj.weight.data += 0.1
    with pytest.raises(UserError, match=r"on another base than this model \(fingerprint .* is missing; copy the whole"):
        attach_adapter(other, adapter)
    assert not any("lora" in name for name, _ in other.named_parameters())  # and it is left as it was
    save_file(load_file(adapter / WEIGHTS), adapter / WEIGHTS)  # as peft writes it: nothing known of the base
    attach_adapter(other, adapter)


def test_an_adapter_of_another_rank_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    with pytest.raises(UserError, match=r"does not fit this model .*size mismatch .*\[6, 2\].*\[6, 3\]"):
        attach_adapter(build(), adapter)


def test_an_untrained_adapter_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was trained: the B matrices of q_proj"):
        save_adapter(add_adapter(build(), OPTIONS, ("q_proj",), "runs/base"), tmp_path)


@pytest.mark.parametrize("targets", [("to_q",), ("q_proj", "to_q"), ("proj",)])
def test_a_target_that_matches_nothing_is_refused_with_the_candidates(targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"no module matches {targets[-1]}; this model has q_proj, v_proj"):
        add_adapter(build(), OPTIONS, targets, "runs/base")


def test_an_adapter_of_another_base_is_refused_with_its_base(adapter: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit this model .*size mismatch.*trained on: runs/base") as caught:
        attach_adapter(build(width=8), adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        (
            "v_proj.lora_B",
            None,
            r"1 tensors differ: .*v_proj\.lora_B\.default\.weight \(not in the adapter\)",
        ),
        (None, "base_model.model.k_proj.lora_A.weight", r"1 tensors differ.*k_proj.*\(not in this model\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_with_other_tensors_is_refused(
    adapter: Path, drop: str | None, add: str | None, message: str
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    kept = {name: value for name, value in tensors.items() if drop is None or drop not in name}
    assert len(kept) == len(tensors) - (drop is not None)
    if add is not None:
        kept[add] = torch.zeros(2, 6)
    save_file(kept, adapter / WEIGHTS)

    with pytest.raises(UserError, match=message):
        attach_adapter(build(), adapter)


@pytest.mark.parametrize("missing", ["adapter_config.json", WEIGHTS])
def test_a_folder_without_an_adapter_is_refused(adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    with pytest.raises(UserError, match=rf"no adapter in .*{missing} is missing"):
        attach_adapter(build(), adapter)


def test_damaged_files_are_refused(adapter: Path) -> None:
    config = (adapter / "adapter_config.json").read_text()
    for text in ("{", "[]", json.dumps({"r": 2})):
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="is not an adapter's config"):
            attach_adapter(build(), adapter)

    (adapter / "adapter_config.json").write_text(config)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(UserError, match="does not fit this model"):
        attach_adapter(build(), adapter)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="lora: rank must be at least 1"):
        LoraOptions(**options)


def test_a_part_s_rank_keeps_alpha_over_rank() -> None:
    options = LoraOptions(rank=8, alpha=16.0, ranks=PartRanks(refine_unet=2))
    assert (options.of_part("refine_unet").rank, options.of_part("refine_unet").alpha) == (2, 4.0)
    assert (options.of_part("lvlm").rank, options.of_part("lvlm").alpha) == (8, 16.0)
    with pytest.raises(UserError, match=r"lora\.ranks\.lvlm must be at least 1"):
        PartRanks(lvlm=0)


def test_the_metadata_name_the_base_and_the_recipe(adapter: Path, tmp_path: Path) -> None:
    model = add_adapter(build(), OPTIONS, ("q_proj",), "runs/base", revision="abc")
    train_b(model)
    save_adapter(model, tmp_path / "new", {"trigger_word": "neon", "recipe": {"steps": 3}})
    about = adapter_metadata(tmp_path / "new")
    assert about == {
        **{"base": "runs/base", "revision": "abc", "fingerprint": module_fingerprint(build())},
        **{"trigger_word": "neon", "recipe": {"steps": 3}},
    }
    other = build()
    other.norm.weight.data += 1  # not adapted, and yet another model
    assert module_fingerprint(other) != about["fingerprint"]


def test_an_extra_module_is_saved_with_its_base_marks(tmp_path: Path) -> None:
    model = add_adapter(build(), OPTIONS, ("q_proj",), "runs/base", allowed={"q_proj"}, extra=["v_proj"])
    train_b(model)
    save_adapter(model, tmp_path)
    other = build()
    other.v_proj.weight.data += 0.1
    with pytest.raises(UserError, match="1 layers differ: v_proj"):
        attach_adapter(other, tmp_path)


class Wide(nn.Module):
    """Matrices that are large enough to be packed, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(128, 128), nn.Linear(128, 64)
        self.small = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.small(self.v_proj(self.q_proj(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("bits", "dtype", "apart"), [(4, torch.uint8, 0.2), (8, torch.int8, 0.02)])
def test_an_adapter_of_a_quantised_base_fits_the_original(
    bits: int, dtype: torch.dtype, apart: float, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    base = Wide()
    plain = copy.deepcopy(base)
    model = add_adapter(base, LoraOptions(rank=2, base_bits=bits), ("q_proj", "v_proj"), "runs/base")
    model.to("cpu")  # packs
    assert base.q_proj.get_base_layer().weight.dtype == dtype
    assert base.small.weight.dtype == torch.float32
    x = torch.randn(4, 128, requires_grad=True)
    assert (model(x) - plain(x)).abs().mean() < apart * plain(x).abs().mean()
    model(x).square().mean().backward()
    with_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert with_gradient
    assert all(".lora_" in name for name in with_gradient)
    train_b(model)
    save_adapter(model, tmp_path)
    loaded = attach_adapter(plain, tmp_path).merge_and_unload()  # base_marks.json is of the base before packing
    with torch.no_grad():
        assert (loaded(x) - Wide()(x)).abs().max() > 0.1
