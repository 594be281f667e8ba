"""Vision towers: images in [-1, 1] -> features, for every family; resizing and normalisation in torch.

transformers' processors need uint8 images, some of them torchvision; here images stay tensors on the device, and
gradients pass. One view per image: the tiles that some families cut from large images are left out.
Letters: B images, H W pixels, T patches or queries, D width of the tower's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

# (model, images B 3 H W, resized and normalised) -> features B T D, or pooled ones B D.
Features = Callable[[Any, Tensor], Tensor]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fit_images(pixels: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images B 3 H W in [-1, 1], resized to side x side and normalised with a tower's mean and std (of [0, 1])."""
    if pixels.shape[-2:] != (side, side):
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    if (*mean, *std) == (*HALF, *HALF):
        return pixels
    shift = torch.tensor([1 - 2 * value for value in mean], device=pixels.device, dtype=pixels.dtype)
    scale = torch.tensor([2 * value for value in std], device=pixels.device, dtype=pixels.dtype)
    return (pixels + shift[:, None, None]) / scale[:, None, None]


def tower_side(vision: Any, wanted: int, any_size: bool) -> int:
    """The side in pixels of a tower's input: its own, or if it takes any size, `wanted` cut to whole patches."""
    if not any_size and vision.model_type != "pixtral":
        return _first(vision.image_size)
    if hasattr(vision, "channel_multiplier"):  # a convolutional tokeniser (Emu3) halves between its levels
        patch = 2 ** (len(vision.channel_multiplier) - 1)
    else:
        patch = _patch(vision) * getattr(vision, "spatial_merge_size", 1)
    return max(1, wanted // patch) * patch


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _patch(vision: Any) -> int:
    return _first(vision.patch_size)


# --- attention within each of many images --------------------------------------------------------------------------

# transformers passes all images at once, with their sequence lengths, to backends with "flash" in the name.
EQUAL_IMAGES = "flash_free_equal_images"


def attend_within_images(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int | Tensor,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query, key, value (1 heads S d), S the tokens of all images in a row; returns 1 S heads d.

    For Qwen's towers, which otherwise call attention for one image after the other (64 small images, two layers: 128
    calls, and the tower is a tenth slower). Images, and mostly windows, are equally long here: one call is enough.
    """
    sequences, tokens = len(cu_seq_lens_q) - 1, query.shape[2]
    if sequences * int(max_length_q) == tokens:  # the longest equals the mean: all are equally long
        q, k, v = (x[0].unflatten(1, (sequences, -1)).transpose(0, 1) for x in (query, key, value))  # n heads S/n d
        read = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        return read.transpose(1, 2).flatten(0, 1)[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    each = [nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling) for q, k, v in parts]
    return torch.cat(each, dim=2).transpose(1, 2), None


AttentionInterface.register(EQUAL_IMAGES, attend_within_images)


# --- image features of each family ---------------------------------------------------------------------------------


def from_pixels(model: Any, x: Tensor) -> Tensor:
    """Most families: `get_image_features`."""
    return _stacked(model.get_image_features(pixel_values=x).pooler_output)


def from_pixels_with_sizes(model: Any, x: Tensor) -> Tensor:
    """Towers for images of any size (Pixtral, Emu3): `get_image_features` with the sizes."""
    sizes = torch.tensor(x.shape[-2:], device=x.device).expand(len(x), 2)
    return _stacked(model.get_image_features(pixel_values=x, image_sizes=sizes).pooler_output)


def from_llava(model: Any, x: Tensor) -> Tensor:
    """LLaVA with a Pixtral tower (the Pixtral model) or with any other."""
    pixtral = model.config.vision_config.model_type == "pixtral"
    return from_pixels_with_sizes(model, x) if pixtral else from_pixels(model, x)


def from_base_view(model: Any, x: Tensor) -> Tensor:
    """LLaVA-Next and -OneVision: the base view of the whole image, without tiles and their newline tokens."""
    config = model.config
    states = model.vision_tower(x, output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        chosen = [state[:, 1:] for state in chosen]
    return model.multi_modal_projector(torch.cat(chosen, dim=-1))


def from_idefics(model: Any, x: Tensor) -> Tensor:
    """Idefics 2, 3, SmolVLM: tower and connector; `get_image_features` would take a uniform image for padding."""
    side = x.shape[-1] // _patch(model.config.vision_config)
    mask = torch.ones(len(x), side, side, dtype=torch.bool, device=x.device)
    states = model.vision_model(pixel_values=x, patch_attention_mask=mask).last_hidden_state
    if model.config.model_type == "idefics2":
        return model.connector(states, attention_mask=mask.flatten(1))
    return model.connector(states)


def from_qwen(model: Any, x: Tensor) -> Tensor:
    """Qwen2-VL, 2.5 and 3: flat patches in the family's order."""
    vision = model.config.vision_config
    patches, grid = qwen_patches(
        x, x.shape[-1], vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    )
    if model.visual.config._attn_implementation == "sdpa":
        model.visual.config._attn_implementation = EQUAL_IMAGES
    merged = model.visual(patches, grid_thw=grid).pooler_output  # (B n) D
    return merged.unflatten(0, (len(x), -1))


def from_mllama(model: Any, x: Tensor) -> Tensor:
    """Mllama: the image as one tile (aspect ratio 1 by 1), the other tiles empty."""
    vision = model.config.vision_config
    tiles = x.new_zeros(len(x), 1, vision.max_num_tiles, *x.shape[1:])
    tiles[:, 0, 0] = x
    present = torch.zeros(len(x), 1, vision.max_num_tiles, dtype=torch.long, device=x.device)
    present[:, :, 0] = 1
    ratio = vision.supported_aspect_ratios.index([1, 1]) + 1  # 0 is "no image"
    ratios = torch.full((len(x), 1), ratio, device=x.device)
    states = model.vision_model(pixel_values=tiles, aspect_ratio_ids=ratios, aspect_ratio_mask=present)
    return model.multi_modal_projector(states.last_hidden_state[:, 0, 0])


def from_molmo2(model: Any, x: Tensor) -> Tensor:
    """Molmo2: flat patches of the whole image, pooled two by two."""
    patch = _patch(model.config.vision_config)
    count = x.shape[-1] // patch
    index = torch.arange(count * count, device=x.device).view(1, count, count)
    if count % 2:  # -1 pads the last windows
        index = nn.functional.pad(index, (0, 1, 0, 1), value=-1)
    windows = index.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 2, 4).reshape(-1, 4)
    first = torch.arange(len(x), device=x.device)[:, None, None] * count * count
    pooling = torch.where(windows >= 0, windows + first, -1).flatten(0, 1)  # (B T) 4
    side = -(-count // 2)
    grids = torch.tensor([side, side, 0, 0], device=x.device).expand(len(x), 4)
    output = model.get_image_features(
        pixel_values=flat_patches(x, patch), image_token_pooling=pooling, image_grids=grids
    )
    return _stacked(output.pooler_output)


def from_siglip2(model: Any, x: Tensor) -> Tensor:
    """SigLIP 2 for any size (NaFlex): flat patches with their grid."""
    tower = getattr(model, "vision_model", model)
    patch = _patch(tower.config)
    shapes = torch.tensor([x.shape[-2] // patch, x.shape[-1] // patch], device=x.device).expand(len(x), 2)
    patches = flat_patches(x, patch)
    mask = torch.ones(patches.shape[:2], dtype=torch.long, device=x.device)
    return tower(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes).pooler_output


def from_blip2(model: Any, x: Tensor) -> Tensor:
    """BLIP-2: the Q-Former's queries over the image, projected into the space shared with text."""
    states = model.vision_model(pixel_values=x).last_hidden_state
    queries = model.query_tokens.expand(len(x), -1, -1).to(states.dtype)
    read = model.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
    return model.vision_projection(read)


def from_git(model: Any, x: Tensor) -> Tensor:
    """GIT: the image encoder's patches, projected for the decoder."""
    return model.visual_projection(model.image_encoder(x).last_hidden_state)


def from_flava(model: Any, x: Tensor) -> Tensor:
    """FLAVA: the image encoder's CLS state in the contrastive space."""
    return model.image_projection(model.image_model(pixel_values=x).last_hidden_state[:, 0])


def from_tower(model: Any, x: Tensor) -> Tensor:
    """A separate vision encoder: its pooled state (for DINOv2 the CLS state)."""
    return model(pixel_values=x).pooler_output


def _stacked(features: Any) -> Tensor:
    """One tensor of features that transformers returns as a list of T D, or as a tensor."""
    return torch.stack(list(features)) if isinstance(features, list | tuple) else features


def flat_patches(x: Tensor, patch: int) -> Tensor:
    """B 3 H W -> B n (patch patch 3), row by row."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # B 3 gh ph gw pw
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def qwen_patches(pixels: Tensor, side: int, patch: int, merge: int, frames: int) -> tuple[Tensor, Tensor]:
    """Images B 3 H W as Qwen2-VL's flat patches (B n, 3 frames patch patch) and their grid (B 3).

    In the family's order: the patches of one merged group follow each other.
    """
    side = side // (patch * merge) * (patch * merge)
    if pixels.shape[-2:] != (side, side):
        pixels = nn.functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    groups = side // (patch * merge)
    x = pixels.unflatten(2, (groups, merge, patch)).unflatten(5, (groups, merge, patch))
    # B 3 gh mh ph gw mw pw -> B gh gw mh mw 3 ph pw
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], frames, patch, patch)  # a still image fills every frame
    grid = torch.tensor([[1, groups * merge, groups * merge]], device=pixels.device).expand(len(pixels), 3)
    return x.reshape(-1, 3 * frames * patch * patch), grid
