"""L_align in a stage: which captions it reads, and the inputs of each kind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vlad.config.load import load_config
from vlad.losses.alignment_heads import AlignmentHeads
from vlad.losses.contrastive import AlignmentHead, contrastive_loss, multi_positive_loss, relations_from_ids, text_ids
from vlad.losses.extra.region_phrase_contrast import RegionHead
from vlad.losses.options import LossOptions
from vlad.losses.text_side_losses import encode_prompts, text_side_losses, weighted_sum
from vlad.models.composition import CompositionModule, TextSide
from vlad.models.options import LVLMOptions
from vlad.models.text_encoder.lvlm import LVLMEncoder
from vlad.models.text_encoder.lvlm_loading import load_lvlm
from vlad.models.text_encoder.prompt import parse_prompt
from vlad.training.build import parts_of_base
from vlad.types import Batch, Layout
from vlad.utils.errors import UserError

TINY = LVLMOptions(hidden_size=24, layers=1, heads=2, vision_hidden_size=16, vision_layers=1, vision_pixels=32)
CAPTIONS = ('a red sign that says "HI"', "a blue cat on a big tree", 'a red sign that says "HI"', "a door")


def parts(kind: str) -> tuple[TextSide, AlignmentHead, Batch]:
    torch.manual_seed(0)
    lvlm = LVLMEncoder(*load_lvlm(TINY), TINY)
    composition = CompositionModule(lvlm.width, width=16, layers=1, heads=2, output_width=20)
    head = AlignmentHead(20, lvlm.width, width=8, kind=kind)  # type: ignore[arg-type]
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(("1", "2", "3", "4"), CAPTIONS, (Layout(()),) * 4, ((),) * 4, pixels, pixels[:, :1], None)
    return TextSide(lvlm, composition), head, batch


def align(kind: str, seed: int = 0, **options: Any) -> tuple[float, list[list[str]]]:
    """The loss, and the batches of captions that the text side has read for it."""
    text_side, head, batch = parts(kind)
    prompts = encode_prompts(text_side, batch)
    read: list[list[str]] = []
    text_side.register_forward_hook(lambda module, arguments, output: read.append([p.text for p in arguments[0]]))
    torch.manual_seed(seed)
    losses = LossOptions(alignment=kind, **options)  # type: ignore[arg-type]
    terms = text_side_losses(text_side, AlignmentHeads(head), prompts, batch, losses)
    assert set(terms) == ({"align"} if losses.align_weight else set())
    return weighted_sum(terms, losses, torch.device("cpu")).item(), read


@torch.no_grad()
def test_the_paper_s_kind_is_equation_3_and_the_multi_positive_one_knows_equal_captions() -> None:
    text_side, head, batch = parts("one-directional")
    prompts = [parse_prompt(caption) for caption in CAPTIONS]
    texts = head.from_text(text_side(prompts).pooled)
    images = head.from_image(text_side.lvlm.image_embeddings(batch.images))

    assert align("one-directional")[0] == pytest.approx(contrastive_loss(texts, images, 0.07).item(), rel=1e-5)
    relations = relations_from_ids(text_ids(prompts))
    wanted = multi_positive_loss(texts, images, 0.07, relations).item()
    assert align("multi-positive")[0] == pytest.approx(wanted, rel=1e-5)
    assert align("one-directional")[1] == align("multi-positive")[1] == []


@torch.no_grad()
@pytest.mark.parametrize("kind", ["symmetric", "multi-positive", "sigmoid"])
def test_swapped_and_reworded_captions_are_read_in_one_more_pass(kind: str) -> None:
    loss, (read,) = align(kind, hard_negatives=2, rewordings=1)

    assert len(read) == 4 * 3
    assert len(set(read[3:6]) - {CAPTIONS[1]}) == 3  # one reworded, two swapped
    assert read[9:] == [CAPTIONS[3]] * 3  # nothing to swap
    assert loss != align(kind)[0]
    # Drawn by torch's generator, which is seeded for each batch.
    assert align(kind, hard_negatives=2, rewordings=1) == (loss, [read])
    assert align(kind, seed=1, hard_negatives=2, rewordings=1)[1] != [read]


def test_without_weight_nothing_is_computed() -> None:
    assert align("symmetric", align_weight=0.0, hard_negatives=1) == (0.0, [])


@pytest.mark.parametrize("mistake", [{"hard_negatives": 1}, {"rewordings": 1}, {"hard_negatives": -1}])
def test_augmented_texts_need_a_kind_that_contrasts_images_with_texts(mistake: dict[str, int]) -> None:
    with pytest.raises(UserError, match="hard_negatives"):
        LossOptions(**mistake)  # type: ignore[arg-type]


def test_a_base_s_heads_start_any_kind() -> None:
    base = AlignmentHeads(AlignmentHead(4, 4, width=3, temperature=0.3))
    heir = AlignmentHeads(AlignmentHead(4, 4, width=3, kind="sigmoid"), RegionHead(4, 4, width=3))
    heir.load_compatible(base.state_dict())
    assert torch.equal(heir.contrast.from_text.weight, base.contrast.from_text.weight)
    assert heir.learned_scalars() == pytest.approx({"temperature": 0.3, "bias": -10.0, "region_temperature": 0.07})

    stored = {**heir.state_dict(), "contrast.bias": torch.tensor(-2.0)}
    base.load_compatible(stored)
    heir.load_compatible(stored)
    assert heir.contrast.learned_scalars() == pytest.approx({"temperature": 0.3, "bias": -2.0})
    other = AlignmentHeads(AlignmentHead(4, 5, width=3))  # v of another encoder: that projection begins anew
    fresh = other.contrast.from_image.weight.clone()
    other.load_compatible(stored)
    assert torch.equal(other.contrast.from_text.weight, heir.contrast.from_text.weight)
    assert torch.equal(other.contrast.from_image.weight, fresh)


@pytest.mark.parametrize(
    ("lora", "said"), [("null", "those of L_align begin anew"), ("{rank: 2}", "trained without L_align")]
)
def test_a_base_without_alignment_heads_is_reported(
    lora: str, said: str, ours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("configs/tiny.yaml", ["data.image_pixels=32", f"base={ours}", f"lora={lora}"])
    _, config = parts_of_base(config)
    assert f"{ours} comes without its alignment heads: {said}\n" in capsys.readouterr().err
    assert (config.losses.align_weight > 0) == (lora == "null")
