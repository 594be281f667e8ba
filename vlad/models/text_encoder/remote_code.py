"""An LVLM whose class is code beside its weights (`lvlm.trust_remote_code`), in a pipeline: run only where trusted.

pipeline/model_index.json   "lvlm": ["transformers_modules...", CLASS]
pipeline/lvlm/*.py          the code, copied there when the pipeline was saved
VLAD_TRUSTED_CODE           the digits of the code that may run: changed code has others
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel

from vlad.models.text_encoder.lvlm_loading import check_code_is_pinned, report_load_errors
from vlad.utils.errors import UserError

TRUSTED = "VLAD_TRUSTED_CODE"
PART = "lvlm"


def load_remote_code_parts(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """The LVLM of a pipeline's folder by its name there, where its class is code of its own; else nothing.

    Raises UserError where the code is not trusted: it has not been run then.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    library = str((index.get(PART) or [None])[0])
    if library.partition(".")[0] != "transformers_modules":
        return {}
    place = folder / PART
    digits = code_hash(place)
    if os.environ.get(TRUSTED) != digits:
        files = ", ".join(path.name for path in sorted(place.glob("*.py"))) or "which is missing"
        raise UserError(
            f"The LVLM in {place} brings code of its own ({files}); read it, then set {TRUSTED}={digits} in the"
            " environment to let it run."
        )
    check_code_is_pinned(str(place), None)
    with report_load_errors("The LVLM's code", str(place)):
        model = AutoModel.from_pretrained(place, trust_remote_code=True, local_files_only=True, dtype=dtype)
    # Where diffusers will look for the class: under the name of the run that saved it.
    sys.modules[library] = sys.modules[type(model).__module__]
    return {PART: model}


def code_hash(folder: Path) -> str:
    """16 hexadecimal digits of the names and contents of a folder's Python files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
