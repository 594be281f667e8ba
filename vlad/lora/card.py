"""The model card of an adapter: README.md beside its parts, with a YAML header that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlad.lora.adapter_files import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, adapter_metadata

CARD = "README.md"


def adapter_card(folder: Path, metadata: Mapping[str, Any]) -> str:
    """The card of the adapters in `folder`: base, rank and size of each part, how to use them, the training recipe.

    `metadata`: `trigger_word`, `recipe` and the like, as plain values.
    """
    parts = sorted(path.parent for path in folder.glob(f"*/{WEIGHTS}"))
    known = {part.name: adapter_metadata(part) for part in parts}
    base = next((str(record["base"]) for record in known.values() if record.get("base")), "unknown")
    trigger = metadata.get("trigger_word")
    head = ["---", "library_name: peft", "pipeline_tag: text-to-image", "tags: [vlad, lora, text-rendering]"]
    head += [
        f"base_model: {json.dumps(base)}",
        *([f"instance_prompt: {json.dumps(trigger)}"] if trigger else []),
        "---",
    ]
    rows = [
        "| part | rank | alpha | bytes | base's fingerprint |",
        "|---|---|---|---|---|",
    ]
    for part in parts:
        config = json.loads((part / CONFIG).read_text(encoding="utf-8"))
        size = (part / WEIGHTS).stat().st_size
        fingerprint = known[part.name].get("fingerprint", "unknown")
        rows.append(f"| {part.name} | {config['r']} | {config['lora_alpha']:g} | {size:,} | {fingerprint} |")
    said = f"{trigger}, " if trigger else ""
    use = [
        f"    python sample.py BASE --adapter THIS_FOLDER --prompt '{said}an image that says \"OPEN\"'",
        "",
        f"BASE is `{base}`; on other weights the adapter is refused. `THIS_FOLDER:0.5` halves its effect. A UNet's part"
        f" also has {DIFFUSERS_WEIGHTS}, for `unet.load_lora_adapter` of diffusers.",
    ]
    recipe = json.dumps(dict(metadata), indent=1, ensure_ascii=False)
    trained = ["## Trained with", "", "```json", recipe, "```"]
    word = [f"The trigger word is **{trigger}**: every training caption began with it.", ""] if trigger else []
    lines = [*head, "", f"# An adapter for {base}", "", *word, *rows, "", "## Use", "", *use, "", *trained]
    return "\n".join(lines) + "\n"
