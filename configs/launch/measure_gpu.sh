#!/bin/bash
# Measures training of two UNets of Stable Diffusion 1.5's size on one GPU: the tables for docs/performance.md.
#
#   configs/launch/measure_gpu.sh [key=value ...]
#
# For 256 and 512 pixels (PIXELS="512": one of them): both stages switch by switch, then LoRA adapters on the same UNets.
# Renders its own signs, and needs about 60 GB of disk below the working directory. Run again, it only measures.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
steps=${STEPS:-30}

for pixels in ${PIXELS:-256 512}; do
  name=sd15_$pixels
  sized=(configs/sd15_size.yaml name="$name" data.shards="data/$name" data.image_pixels="$pixels"
    data.synthetic.size_pixels="$pixels" trainable.lvlm=frozen "$@")
  "$python" tools/render_shards.py "${sized[@]}"
  # A base with a frozen autoencoder, as caches and adapters need one: speed does not ask what weights have learnt.
  "$python" train.py "${sized[@]}" train.autoencoder.steps=20 train.layout.steps=1 train.refine.steps=1 \
    trainer.sample_every_steps=0
  measured=("${sized[@]}" base="runs/$name" name="${name}_measured")
  "$python" tools/cache.py "${measured[@]}" --out "data/${name}_cache"
  for stage in layout refine; do
    "$python" tools/benchmark.py train "${measured[@]}" --stage "$stage" --steps "$steps" --cache "data/${name}_cache"
  done
  "$python" tools/benchmark.py train "${measured[@]}" lora.rank=16 trainer.activation_checkpointing=unets \
    --stage refine --steps "$steps" --cache "data/${name}_cache" --switches attention channels_last cache
done
