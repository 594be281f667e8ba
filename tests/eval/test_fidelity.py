"""FID, KID and CLIPScore on tiny models, against torchmetrics' and the formulas' own numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from vlad.eval.alignment.joint_encoders import joint_encoder
from vlad.eval.benchmark.image_sets import BenchmarkImage
from vlad.eval.fidelity.clip_score import CLIP_PROTOCOLS, ClipProtocol, clip_scores
from vlad.eval.fidelity.distances import INCEPTION, Inception, PixelFeatures, find_encoders, score_distances
from vlad.eval.fidelity.fidelity_scores import check_encoders, score_fidelity
from vlad.eval.fidelity.reference_images import references_of
from vlad.eval.protocols.protocol import BenchmarkPrompt
from vlad.models.metric_encoders import CLIPEncoder, VisionEncoder
from vlad.utils.errors import UserError


class Means:
    """Compares images by the mean colours of their quarters."""

    name = "means"

    def features(self, images) -> Tensor:
        return torch.stack([torch.from_numpy(_quarters(np.asarray(image))) for image in images])


def _quarters(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    parts = [image[y : y + height, x : x + width] for y in (0, height) for x in (0, width)]
    return np.stack([part.mean(axis=(0, 1)) for part in parts]).ravel()[:4] / 255


def paint(folder: Path, seed: int, count: int = 40, shift: int = 0) -> list[Path]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        colours = rng.integers(0, 180, (2, 2, 3)) + shift
        image = np.kron(colours, np.ones((8, 8, 1))).astype(np.uint8)
        paths.append(folder / f"{number}_0.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def features_of(paths: list[Path]) -> np.ndarray:
    return np.stack([_quarters(np.asarray(Image.open(path))) for path in paths])


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), Heusel et al. 2017."""
    covariances = np.cov(a.T), np.cov(b.T)
    roots = np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)
    return float(
        np.square(a.mean(0) - b.mean(0)).sum()
        + np.trace(covariances[0] + covariances[1])
        - 2 * np.sqrt(roots).real.sum()
    )


def test_distances_equal_the_library_and_the_formula(tmp_path: Path) -> None:
    real, generated = paint(tmp_path / "real", 0), paint(tmp_path / "generated", 1, shift=40)
    found = score_distances(Means(), real, [generated])
    assert found.fid == pytest.approx(frechet(features_of(real), features_of(generated)), rel=1e-4)

    class Encoder(nn.Module):
        num_features = 4

        def forward(self, pixels: Tensor) -> Tensor:
            return torch.stack([torch.from_numpy(_quarters(p.permute(1, 2, 0).numpy())) for p in pixels])

    library = FrechetInceptionDistance(feature=Encoder())
    library.set_dtype(torch.float64)
    for paths, is_real in ((real, True), (generated, False)):
        library.update(
            torch.stack([torch.from_numpy(np.asarray(Image.open(p)).copy()) for p in paths]).permute(0, 3, 1, 2),
            is_real,
        )
    assert found.fid == pytest.approx(float(library.compute()), rel=1e-9)
    # KID with subsets of everything is the plain unbiased estimate of the polynomial kernel (x y / d + 1)^3.
    x, y = features_of(real), features_of(generated)
    kernels = [(a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = sum((k.sum() - np.trace(k)) / (40 * 39) for k in kernels[:2])
    assert found.kid == pytest.approx(within - 2 * kernels[2].mean(), abs=1e-5)
    assert str(found) == "means, 40 images against 40 references, once"


def test_distances_average_over_sample_numbers_and_vanish_between_equal_sets(tmp_path: Path) -> None:
    real, other = paint(tmp_path / "real", 0), paint(tmp_path / "other", 1, shift=40)
    same, far = score_distances(Means(), real, [real]), score_distances(Means(), real, [other])
    assert same.fid == pytest.approx(0, abs=1e-6)
    assert far.fid > 0.05
    both = score_distances(Means(), real, [real, other])
    assert both.fid == pytest.approx((same.fid + far.fid) / 2, rel=1e-6)
    assert both.kid == pytest.approx((same.kid + far.kid) / 2, rel=1e-4)
    uneven = score_distances(Means(), real, [real, other[:30]])
    assert str(uneven) == "means, 30 to 40 images against 40 references, 2 times"
    with pytest.raises(UserError, match="at least two images"):
        score_distances(Means(), real[:1], [other])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights, with a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("weights") / "clip-vit-base-patch32"
    folder.mkdir()
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: number for number, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=20).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 20},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    preparation = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "crop_size": 16,
        "size": {"shortest_edge": 16},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation), encoding="utf-8")
    return folder


def test_clip_scores_are_scaled_cosines_of_prefixed_prompts(clip: Path, tmp_path: Path) -> None:
    paths = paint(tmp_path, 0, 5)
    prompts = ["a cat", "b", "long " * 30, "a sign", "c"]
    encoder = CLIPEncoder(clip)
    found = list(clip_scores(encoder, ClipProtocol("x", "a photo ", 2.5), zip(prompts, paths, strict=True)))
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    for prompt, path, score in zip(prompts, paths, found, strict=True):
        pixels = (torch.from_numpy(np.array(Image.open(path))).float() / 255).sub(torch.tensor([0.5, 0.4, 0.3]))
        pixels = pixels.div(torch.tensor([0.2, 0.3, 0.4])).permute(2, 0, 1)[None]
        tokens = tokenizer(f"a photo {prompt}", truncation=True, max_length=20, return_tensors="pt")
        with torch.no_grad():
            cosine = model(**tokens, pixel_values=pixels).logits_per_image.item() / model.logit_scale.exp().item()
        assert score == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert len(set(found)) > 1 and max(found) > 0


def test_a_clip_folder_is_a_joint_encoder(clip: Path) -> None:
    encoder = joint_encoder(clip)
    texts = ["a cat", "a longer text"]
    images = [np.random.default_rng(n).integers(256, size=(20 + n, 30, 3)).astype(np.uint8) for n in range(2)]
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=20, return_tensors="pt")
        found = model(**tokens, pixel_values=CLIPEncoder(clip).preprocess(images))
    cosines = torch.nn.functional.cosine_similarity
    assert cosines(encoder.embed_texts(texts), found.text_embeds).tolist() == pytest.approx([1, 1])
    assert cosines(encoder.embed_images(images), found.image_embeds).tolist() == pytest.approx([1, 1])


def test_every_score_names_its_basis_or_what_is_missing(clip: Path, tmp_path: Path) -> None:
    generated, real = paint(tmp_path / "generated", 1, 6), paint(tmp_path / "real", 0, 6)
    images = [
        BenchmarkImage(BenchmarkPrompt(str(n), "a cat", (), reference=str(real[n])), 0, path)
        for n, path in enumerate(generated)
    ]
    torch.manual_seed(0)
    dino = tmp_path / "dinov2-tiny"
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7)
    Dinov2Model(config).save_pretrained(dino)
    references = references_of([image.prompt for image in images])
    scores, left_out = score_fidelity(images, ["mario", "cvtg"], clip.parent, [dino], references)
    assert [score.name for score in scores] == ["CLIPScore", "FID", "KID"]
    assert scores[0].protocol == "clip-vit-base-patch32, prefix 'A photo depicts', scale 1, 6 images"
    assert scores[0].low is not None and scores[0].low <= scores[0].value <= scores[0].high
    assert scores[1].protocol == "dinov2-tiny, 6 images against 6 references, once"
    encoder = VisionEncoder(dino)
    with torch.no_grad():
        pixels = encoder.preprocess([np.asarray(Image.open(generated[0]))])
        first = Dinov2Model.from_pretrained(dino)(pixel_values=pixels).pooler_output
    assert torch.allclose(encoder.features([np.asarray(Image.open(generated[0]))]), first, atol=1e-6)
    assert "put the folder of openai/clip-vit-large-patch14 (hf download) at" in left_out["clip score, cvtg"]
    assert f"put {INCEPTION} (from NVIDIA's stylegan3 metrics) at {clip.parent / INCEPTION}" in left_out["fid"]
    bare = [BenchmarkImage(BenchmarkPrompt("0", "a cat", ()), 0, generated[0])]
    assert "names none as reference" in score_fidelity(bare, [], tmp_path, [])[1]["fid"]
    # Prompts without references take no part, and what is broken costs FID alone.
    more = [*images, BenchmarkImage(BenchmarkPrompt("x", "a dog", ()), 0, paint(tmp_path / "more", 3, 1, 70)[0])]
    again, _ = score_fidelity(more, ["mario"], clip.parent, [dino], references)
    assert (again[1].value, again[1].protocol) == (pytest.approx(scores[1].value), scores[1].protocol)
    assert score_fidelity([], ["mario"], clip.parent, [dino], references)[0] == []
    real[5].write_bytes(b"no image")
    found, why = score_fidelity(images, ["mario"], clip.parent, [dino], references)
    assert [score.name for score in found] == ["CLIPScore"]
    assert why["fid"] == f"FID and KID cannot read the image {real[5]}; put a whole one there."
    real[5].unlink()
    found, why = score_fidelity(images, ["mario"], clip.parent, [dino], references)
    assert [score.name for score in found] == ["CLIPScore"]
    assert f"1 of 6 reference images are missing, {real[5]} first" in why["fid"]


def test_references_of_a_folder_and_of_its_subsets(tmp_path: Path) -> None:
    prompts = [BenchmarkPrompt(f"{name}-{n}", "a cat", (), subset=name) for name in ("TMDB", "Draw") for n in range(2)]
    paths = paint(tmp_path / "TMDB" / "images", 0, 3)
    (tmp_path / "TMDB" / "TMDB.txt").write_text("a cat\n", encoding="utf-8")
    paint(tmp_path / "Other", 1, 2)
    found = references_of(prompts, tmp_path)
    assert (set(found.paths), found.prompts) == (set(paths), {"TMDB-0", "TMDB-1"})
    whole = references_of(prompts, tmp_path / "TMDB")
    assert (set(whole.paths), len(whole.prompts)) == (set(paths), 4)
    with pytest.raises(UserError, match="no folder of reference images at"):
        references_of(prompts, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no reference image in"):
        references_of(prompts, tmp_path / "empty")


def test_unusable_weights_are_refused_before_generation(clip: Path, tmp_path: Path) -> None:
    check_encoders(["mario", "cvtg", "longtext"], tmp_path, [])  # what is not there is left out later
    folder = tmp_path / "clip-vit-large-patch14"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    check_encoders(["mario"], tmp_path, [])
    with pytest.raises(UserError, match=r"cannot be read .*give a complete model folder"):
        check_encoders(["cvtg"], tmp_path, [])
    with pytest.raises(UserError, match="There is no vision encoder at"):
        check_encoders([], tmp_path, [tmp_path / "none"])
    half = tmp_path / "clip-vit-base-patch32"
    shutil.copytree(clip, half, ignore=shutil.ignore_patterns("*token*", "vocab*", "merges*"))
    with pytest.raises(UserError, match=r"holds no tokenizer .*; give a complete model folder"):
        check_encoders(["mario"], tmp_path, [])


def test_inception_is_a_torchscript_file(tmp_path: Path) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
            return (x.float() * self.weight[:, None, None]).mean(dim=[2, 3]) if return_features else x.float()

    torch.jit.script(Graph()).save(str(tmp_path / INCEPTION))
    encoders, left_out = find_encoders(tmp_path, [])
    assert left_out == {}
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    assert np.allclose(encoders[0].features([image]).numpy()[0], image.mean(axis=(0, 1)), rtol=1e-5)
    (tmp_path / "bad.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="is no TorchScript file"):
        Inception(tmp_path / "bad.pt")
    with pytest.raises(UserError, match="no vision encoder at"):
        find_encoders(tmp_path, [tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot be read .*give a complete model folder"):
        VisionEncoder(tmp_path / "empty")


def test_clip_protocols_of_the_benchmarks() -> None:
    assert {name: (p.model[-7:], p.prefix, p.scale) for name, p in CLIP_PROTOCOLS.items()} == {
        "mario": ("patch32", "A photo depicts ", 1.0),
        "anytext": ("patch32", "", 2.5),
        "cvtg": ("patch14", "A photo depicts ", 2.5),
    }


def test_pixel_features_see_colours_positions_and_contrast() -> None:
    flat = np.full((32, 32, 3), (255, 0, 51), np.uint8)
    right = flat.copy()
    right[:, 16:] = (0, 255, 0)
    striped = flat.copy()
    striped[::2] = 0
    features = PixelFeatures().features([flat, right, striped])
    assert features.shape == (3, 256)
    colours, contrast = features[:, :192].reshape(3, 3, 8, 8), features[:, 192:].reshape(3, 8, 8)
    torch.testing.assert_close(colours[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert (colours[1, :, :, :4] == colours[0, :, :, :4]).all() and (colours[1, 1, :, 4:] == 1).all()
    assert contrast[:2].abs().max() < 1e-3
    torch.testing.assert_close(contrast[2], torch.full((8, 8), 0.2))
