"""Retrieval on held-out pairs while the text side trains: how well texts and images find each other (L_align)."""

from __future__ import annotations

from pathlib import Path

import torch

from vlad.config.schema import Config
from vlad.data.collate import collate
from vlad.data.dataset import first_samples
from vlad.data.shard_sets import ShardSets
from vlad.losses.contrastive import text_ids
from vlad.losses.text_side_losses import encode_prompts
from vlad.metrics.retrieval import plot_shared_space, score_retrieval
from vlad.training.callbacks.ema import EMA
from vlad.training.callbacks.periodic_evaluation import PeriodicEvaluation
from vlad.training.parts import Parts
from vlad.utils.distributed import is_main_process

RETRIEVAL_PAIRS = 256


class RetrievalScores(PeriodicEvaluation):
    """Scores the first pairs of data.held_out in the shared space as it is now, and plots that space."""

    def __init__(self, config: Config, parts: Parts, pairs: ShardSets, stage: str, ema: EMA) -> None:
        folder = config.directory / "samples" / stage / "shared-space"
        super().__init__(folder, config.trainer.sample_every_steps, ema)
        self.parts = parts
        samples = first_samples(pairs, config.data.stream(config.seed), RETRIEVAL_PAIRS)
        size = config.data.batch_size
        self.batches = [collate(samples[start : start + size]) for start in range(0, len(samples), size)]

    @torch.no_grad()
    def evaluate(self, path: Path) -> dict[str, float]:
        text_side, alignment = self.parts.text_side, self.parts.alignment
        device = next(alignment.parameters()).device
        texts, images, ids = [], [], []
        for batch in self.batches:
            moved = batch.to(device)
            encoded = encode_prompts(text_side, moved)
            v = alignment.v(text_side.lvlm.image_features(moved.images))
            texts.append(alignment.contrast.embed_texts(alignment.t(encoded.t)))
            images.append(alignment.contrast.embed_images(v))
            ids.append(text_ids(encoded.prompts)[:, 0])
        scores = score_retrieval(torch.cat(texts), torch.cat(images), torch.cat(ids))
        if not is_main_process():
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"{scores.pairs} held-out pairs, recall@1 {scores.text_to_image[1]:.1%} / {scores.image_to_text[1]:.1%}"
        plot_shared_space(torch.cat(texts), torch.cat(images), path, title)
        return scores.metrics()
