"""L_align and its variants against formulas written as loops and, where they exist, losses of transformers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel
from transformers.models.clip.modeling_clip import contrastive_loss as clip_contrastive_loss
from transformers.models.clip.modeling_clip import image_text_contrastive_loss as clip_loss

from vlad.losses.contrastive import (
    AlignmentHead,
    AugmentedTexts,
    clamped_temperature,
    contrastive_loss,
    diagonal_relations,
    multi_positive_loss,
    relations_from_ids,
    sigmoid_loss,
    symmetric_loss,
    text_ids,
)
from vlad.models.text_encoder.prompt import parse_prompt


def states(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 8, generator=generator), 3 * torch.randn(rows, 8, generator=generator)


def cosines(t: Tensor, v: Tensor) -> list[list[float]]:
    return [[float(a @ b) / (float(a.norm()) * float(b.norm())) for b in v] for a in t]


# --- Eq. 3 and CLIP's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_loss_is_equation_3(temperature: float) -> None:
    t, v = states()
    total = 0.0
    for i, row in enumerate(cosines(t, v)):
        weights = [math.exp(cosine / temperature) for cosine in row]
        total -= math.log(weights[i] / sum(weights))

    assert float(contrastive_loss(t, v, temperature)) == pytest.approx(total / len(t), rel=1e-5)


def test_the_loss_is_the_text_half_of_clip_s() -> None:
    t, v = states()
    logits = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / 0.2

    torch.testing.assert_close(contrastive_loss(t, v, 0.2), clip_contrastive_loss(logits))
    assert not torch.allclose(contrastive_loss(t, v, 0.2), clip_contrastive_loss(logits.T))


def test_the_symmetric_loss_is_clip_s() -> None:
    t, v = states()
    logits = F.normalize(t, dim=-1) @ F.normalize(v, dim=-1).T / 0.2

    torch.testing.assert_close(symmetric_loss(t, v, 0.2), clip_loss(logits))
    torch.testing.assert_close(symmetric_loss(t, v, 0.2), symmetric_loss(v, t, 0.2))


def test_matching_pairs_cost_less_than_shuffled_ones() -> None:
    t, _ = states()
    assert contrastive_loss(t, t, 0.07) < 0.1
    assert contrastive_loss(t, t.roll(1, dims=0), 0.07) > 5


# --- any number of matches -----------------------------------------------------------------------------------

RELATIONS = torch.tensor(  # of 5 texts to 3 images
    [
        [1, -1, 1],
        [-1, 1, 0],
        [1, 0, 1],
        [-1, -1, -1],  # matches nothing
        [0, 0, 0],  # is not there
    ]
)


def rows_loss(logits: list[list[float]], relations: list[list[int]]) -> float:
    rows = []
    for logit, relation in zip(logits, relations, strict=True):
        positives = [j for j, r in enumerate(relation) if r == 1]
        if positives:
            total = sum(math.exp(x) for x, r in zip(logit, relation, strict=True) if r != 0)
            rows.append(-sum(math.log(math.exp(logit[j]) / total) for j in positives) / len(positives))
    return sum(rows) / len(rows)


def test_the_multi_positive_loss_is_unicl_s() -> None:
    t, v = states()[0][:5], states()[1][:3]
    logits = [[x / 0.3 for x in row] for row in cosines(t, v)]
    columns = [list(column) for column in zip(*logits, strict=True)]
    wanted = (rows_loss(logits, RELATIONS.tolist()) + rows_loss(columns, RELATIONS.T.tolist())) / 2

    assert float(multi_positive_loss(t, v, 0.3, RELATIONS)) == pytest.approx(wanted, rel=1e-5)


def test_with_one_match_each_it_is_clip_s() -> None:
    t, v = states()
    torch.testing.assert_close(multi_positive_loss(t, v, 0.07, diagonal_relations(6)), symmetric_loss(t, v, 0.07))


def test_a_missing_text_gets_no_gradient_and_changes_no_other() -> None:
    t, v = states()
    t, v = t[:5].clone().requires_grad_(), v[:3].clone().requires_grad_()

    multi_positive_loss(t, v, 0.01, RELATIONS).backward()

    assert t.grad is not None
    assert v.grad is not None
    assert t.grad[4].abs().max() == 0
    assert t.grad[:4].abs().amax(dim=1).min() > 0  # the hard negative's too
    assert t.grad.isfinite().all()
    assert v.grad.isfinite().all()


def test_a_batch_without_any_match_costs_nothing() -> None:
    t, v = (x.requires_grad_() for x in states())
    loss = multi_positive_loss(t, v, 0.1, torch.full((6, 6), -1))
    loss.backward()
    assert loss.item() == 0
    assert t.grad is not None
    assert t.grad.abs().max() == 0


def test_equal_captions_are_positives_and_equal_strings_no_negatives() -> None:
    captions = ['a red sign that says "HI"', "a tree", 'a blue wall with "HI"', 'a red sign that says "HI"', "a cat"]

    relations = relations_from_ids(text_ids([parse_prompt(caption) for caption in captions]))

    assert relations.tolist() == [
        [1, -1, 0, 1, -1],
        [-1, 1, -1, -1, -1],
        [0, -1, 1, 0, -1],
        [1, -1, 0, 1, -1],
        [-1, -1, -1, -1, 1],  # two captions without strings share none
    ]


# --- SigLIP's ------------------------------------------------------------------------------------------------


def test_the_sigmoid_loss_is_siglip_s_formula() -> None:
    t, v = states()[0][:5], states()[1][:3]
    total = 0.0
    for i, row in enumerate(cosines(t, v)):
        for j, cosine in enumerate(row):
            if (r := int(RELATIONS[i, j])) != 0:
                total += math.log(1 / (1 + math.exp(-r * (cosine / 0.2 - 1.5))))

    assert float(sigmoid_loss(t, v, 0.2, -1.5, RELATIONS)) == pytest.approx(-total / 3, rel=1e-5)


def test_the_sigmoid_loss_is_transformers_siglip() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 20, "max_position_embeddings": 8, "projection_size": 8}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.logit_bias.data.fill_(-0.7)
    model.logit_scale.data.fill_(1.3)

    output = model(torch.randint(3, 20, (4, 8)), torch.randn(4, 3, 8, 8), return_loss=True)

    temperature = torch.tensor(-1.3).exp()
    ours = sigmoid_loss(output.text_embeds, output.image_embeds, temperature, -0.7, diagonal_relations(4))
    torch.testing.assert_close(ours, output.loss)


# --- augmented texts -------------------------------------------------------------------------------------------

BATCH = ["a red car", "a blue car", "a big tree"]
FURTHER = [("a blue car", "a red automobile"), ("a green car", ""), ("a big bush", "a large tree")]
ROLES = torch.tensor([[-1, 1], [-1, 0], [-1, 1]])


def ids_of(texts: list[str]) -> Tensor:
    return text_ids([parse_prompt(text or "none") for text in texts])


def augmented_texts(pooled: Tensor) -> AugmentedTexts:
    return AugmentedTexts(pooled, ROLES, torch.stack([ids_of(list(texts))[:, 0] for texts in FURTHER]))


def test_rewordings_match_their_image_and_swapped_captions_none() -> None:
    ids = ids_of(BATCH)

    relations = augmented_texts(torch.zeros(3, 2, 8)).relations(relations_from_ids(ids), ids)

    assert relations.tolist() == [
        [-1, 0, -1],  # "a blue car" is true of the second image: no negative there
        [1, -1, -1],
        [-1, -1, -1],
        [0, 0, 0],  # there is none
        [-1, -1, -1],
        [-1, -1, 1],
    ]


@pytest.mark.parametrize("kind", ["symmetric", "multi-positive", "sigmoid"])
def test_the_head_contrasts_augmented_texts_along_with_the_batch_s(kind: str) -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4, kind=kind)  # type: ignore[arg-type]
    t, v = (x[:3] for x in states())
    pooled = torch.randn(3, 2, 8, requires_grad=True)
    ids, augmented = ids_of(BATCH), augmented_texts(pooled)
    texts = torch.cat([head.from_text(t), head.from_text(pooled).flatten(0, 1)])
    relations = torch.cat([diagonal_relations(3), augmented.relations(diagonal_relations(3), ids)])
    arguments = (texts, head.from_image(v), head.temperature)

    loss = head(t, v, ids, augmented)
    loss.backward()

    wanted = (
        multi_positive_loss(*arguments, relations) if head.bias is None else sigmoid_loss(*arguments, -10.0, relations)
    )
    torch.testing.assert_close(loss, wanted)
    assert pooled.grad is not None
    touched = pooled.grad.abs().amax(dim=2) > 0
    assert torch.equal(touched, ROLES != 0)
    # It is more work than without them.
    assert loss > head(t, v, ids)


def test_with_hard_negatives_the_loss_is_negclip_s() -> None:
    torch.manual_seed(0)
    t, v = (x[:3] for x in states())
    negatives = torch.randn(3, 8)
    logits = F.normalize(v, dim=-1) @ F.normalize(torch.cat([t, negatives]), dim=-1).T / 0.1  # 3 images, 6 texts
    wanted = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits[:, :3].T, torch.arange(3))) / 2

    relations = torch.cat([diagonal_relations(3), torch.full((3, 3), -1)])

    torch.testing.assert_close(multi_positive_loss(torch.cat([t, negatives]), v, 0.1, relations), wanted)


# --- the head ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_temperature", "temperature"), [(-20.0, 0.01), (5.0, 1.0), (math.log(0.3), 0.3)])
def test_the_temperature_is_clamped(log_temperature: float, temperature: float) -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4)
    head.log_temperature.data.fill_(log_temperature)
    t, v = states()

    loss = head(t, v)

    assert head.temperature.item() == pytest.approx(temperature, rel=1e-5)
    assert head.learned_scalars() == {"temperature": pytest.approx(temperature, rel=1e-5)}
    torch.testing.assert_close(loss, contrastive_loss(head.from_text(t), head.from_image(v), temperature))


@pytest.mark.parametrize(("start", "towards", "end"), [(-20.0, 0.5, 0.5), (5.0, 0.5, 0.5), (-1.0, 3.0, 1.0)])
def test_a_temperature_outside_its_range_returns(start: float, towards: float, end: float) -> None:
    log_temperature = nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([log_temperature], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        (clamped_temperature(log_temperature) - towards).square().backward()
        optimizer.step()

    assert clamped_temperature(log_temperature).item() == pytest.approx(end, abs=0.02)
    assert log_temperature.item() < 4  # Adam's momentum carries it past its end, but not on and on


@pytest.mark.parametrize("kind", ["one-directional", "symmetric", "multi-positive", "sigmoid"])
def test_the_head_starts_at_its_temperature_and_all_its_parameters_train(kind: str) -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4, kind=kind)  # type: ignore[arg-type]
    t, v = (x.requires_grad_() for x in states())

    head(t, v, ids_of([f"a tree number {number}" for number in range(6)])).backward()

    start = {"temperature": 0.1, "bias": -10.0} if kind == "sigmoid" else {"temperature": 0.07}
    assert head.learned_scalars() == pytest.approx(start)
    for gradient in (t.grad, v.grad, *(parameter.grad for parameter in head.parameters())):
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_each_kind_of_head_computes_its_own_loss() -> None:
    t, v = states(3)
    ids = ids_of([BATCH[0], BATCH[0], BATCH[2]])
    found = {}
    for kind in ("one-directional", "symmetric", "multi-positive", "sigmoid"):
        torch.manual_seed(0)
        head = AlignmentHead(8, 8, width=4, temperature=0.5, kind=kind)  # type: ignore[arg-type]
        found[kind] = head(t, v, ids)
    arguments = (head.from_text(t), head.from_image(v), 0.5)

    torch.testing.assert_close(found["one-directional"], contrastive_loss(*arguments))
    torch.testing.assert_close(found["symmetric"], symmetric_loss(*arguments))
    torch.testing.assert_close(found["multi-positive"], multi_positive_loss(*arguments, relations_from_ids(ids)))
    torch.testing.assert_close(found["sigmoid"], sigmoid_loss(*arguments, -10.0, diagonal_relations(3)))
    assert len({round(loss.item(), 4) for loss in found.values()}) == 4


def test_embeddings_are_those_that_the_loss_compares() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4)
    t, v = states()

    texts, images = head.embed_texts(t), head.embed_images(v)

    torch.testing.assert_close(texts.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(contrastive_loss(texts, images, head.temperature), head(t, v))


def test_half_precision_states_are_compared_in_full_precision() -> None:
    torch.manual_seed(0)
    head = AlignmentHead(8, 8, width=4)
    t, v = (x.bfloat16() for x in states())

    assert head(t, v).dtype == torch.float32
    torch.testing.assert_close(head(t, v), head(t.float(), v.float()))
