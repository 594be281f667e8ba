"""Which parameters belong to which component, and how a run's phases train them."""

import pytest
import torch

from vlad.config.training import COMPONENTS, ComponentRates, Phase, TrainableOptions
from vlad.lora.inject import add_adapter
from vlad.lora.options import LoraOptions
from vlad.models.composition import CompositionModule, TextSide
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm
from vlad.training.trainable import component_of, component_table, linear_modules, parameters_read, trained_names
from vlad.utils.errors import UserError

TINY = LVLMOptions(hidden_size=24, layers=1, heads=2, vision_hidden_size=16, vision_layers=1, vision_pixels=32)


def text_side() -> TextSide:
    torch.manual_seed(0)
    lvlm = LVLMEncoder(*load_lvlm(TINY), TINY)
    return TextSide(lvlm, CompositionModule(lvlm.width, width=16, layers=1, heads=2, output_width=20))


def test_every_parameter_has_its_component() -> None:
    side = text_side()
    found = {name: component_of(name, side) for name, _ in side.named_parameters()}
    assert set(found.values()) == set(COMPONENTS)
    assert found["lvlm.model.visual.merger.mlp.0.weight"] == "projector"
    assert found["lvlm.model.visual.blocks.0.attn.qkv.weight"] == "vision_tower"
    assert found["lvlm.model.language_model.embed_tokens.weight"] == "lvlm"
    assert found["composition.to_pooled.1.weight"] == "composition"
    assert all(
        (component == "spelling") == name.startswith("composition.spelling_encoder.")
        for name, component in found.items()
    )


def test_a_vision_encoder_of_its_own_is_no_component() -> None:
    side = text_side()
    side.lvlm.vision = torch.nn.Linear(2, 2)
    assert component_of("lvlm.vision.weight", side) is None
    modes = TrainableOptions().resolved(makes_adapter=False).phases[0][1]
    assert trained_names(side, [modes], {"lvlm.vision.weight"}) == frozenset()


def test_the_base_model_s_text_encoders_are_no_component() -> None:
    side = text_side()
    side.base_encoders = torch.nn.Linear(2, 2)  # type: ignore[assignment]
    of_base = {id(parameter) for parameter in side.base_encoders.parameters()}
    names = {name for name, parameter in side.named_parameters() if id(parameter) in of_base}
    assert len(names) == 2 and {component_of(name, side) for name in names} == {None}


def test_names_hold_through_adapters() -> None:
    side = text_side()
    side.lvlm.model = add_adapter(side.lvlm.model, LoraOptions(rank=2), ("q_proj",), "base")
    side.composition = add_adapter(side.composition, LoraOptions(rank=2), (), "base", extra=["to_pooled.1"])
    found = {name: component_of(name, side) for name, _ in side.named_parameters()}
    of_q = {component for name, component in found.items() if "q_proj" in name}
    assert of_q == {"lvlm"}
    assert found["lvlm.model.base_model.model.visual.merger.mlp.0.weight"] == "projector"
    assert found["composition.base_model.model.to_pooled.1.lora_A.default.weight"] == "composition"


def test_modes_choose_weights_or_adapters() -> None:
    side = text_side()
    side.lvlm.model = add_adapter(side.lvlm.model, LoraOptions(rank=2), ("q_proj",), "base")
    read = parameters_read(side, aligned=True)
    options = TrainableOptions(lvlm="lora", projector="full", composition="frozen", spelling="full")
    names = trained_names(side, [options.resolved(False).phases[0][1]], read)
    assert {component_of(name, side) for name in names} == {"lvlm", "projector", "spelling"}
    assert all((".lora_" in name) == (component_of(name, side) == "lvlm") for name in names)
    rows = component_table(side, options.resolved(False).phases[0][1], dict.fromkeys(COMPONENTS, None), read)
    moving = {component: count for component, _, _, count, _ in rows}
    assert moving["vision_tower"] == moving["composition"] == 0
    assert moving["lvlm"] == sum(p.numel() for n, p in side.named_parameters() if ".lora_" in n)


def test_defaults_follow_the_lvlm() -> None:
    modes = TrainableOptions(lvlm="lora").resolved(False).phases[0][1]
    assert modes == {
        "vision_tower": "frozen",
        "projector": "frozen",
        "lvlm": "lora",
        "composition": "full",
        "spelling": "full",
    }
    assert set(TrainableOptions().resolved(False).phases[0][1].values()) == {"full"}
    adapter = TrainableOptions().resolved(makes_adapter=True)
    assert adapter.components("lora") == ["lvlm"]
    assert adapter.components("full") == []
    assert TrainableOptions(lvlm="frozen").resolved(makes_adapter=True).is_frozen


def test_phases_take_turns() -> None:
    options = TrainableOptions(
        projector="full",
        phases=[Phase(until_step=10, lvlm="frozen"), Phase(until_step=30, lvlm="lora"), Phase(lvlm="full")],
    )
    training = options.resolved(False)
    assert [training.phase_at(step) for step in (0, 9, 10, 29, 30, 1000)] == [0, 0, 1, 1, 2, 2]
    assert [modes["lvlm"] for _, modes in training.phases] == ["frozen", "lora", "full"]
    assert [modes["vision_tower"] for _, modes in training.phases] == ["frozen", "frozen", "full"]
    assert training.components("lora") == ["lvlm"]


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([Phase(), Phase()], "every phase but the last needs until_step"),
        ([Phase(until_step=3)], "the last has none"),
        ([Phase(until_step=5), Phase(until_step=5), Phase()], "must rise from phase to phase"),
        ([Phase(until_step=0), Phase()], "from 1 on"),
    ],
)
def test_wrong_phases_are_refused(phases: list[Phase], said: str) -> None:
    with pytest.raises(UserError, match=said):
        TrainableOptions(phases=phases)


def test_wrong_rates_and_modes_are_refused() -> None:
    with pytest.raises(UserError, match=r"learning_rates\.lvlm must be positive"):
        ComponentRates(lvlm=0.0)
    with pytest.raises(UserError, match=r"trainable\.composition: full does not go with lora on a base"):
        TrainableOptions(composition="full").resolved(makes_adapter=True)


def test_adapters_stay_out_of_torch_s_own_attention() -> None:
    composition = CompositionModule(24, width=16, layers=1, heads=2, output_width=20)
    names = set(linear_modules(composition))
    assert {"from_lvlm.1", "blocks.0.linear1", "blocks.0.linear2", "to_output.1", "to_pooled.1"} <= names
    assert not any("self_attn" in name for name in names)
