"""Pipelines whose LVLM needs remote code (`lvlm.trust_remote_code`): the code runs only if its hash is trusted.

pipeline/model_index.json   "lvlm": ["transformers_modules...", CLASS]
pipeline/lvlm/*.py          the code, copied there when the pipeline was saved
VLAD_TRUSTED_CODE           the hash of the code that may run
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
from vlad.models.weight_files import load_complete
from vlad.utils.errors import UserError

TRUSTED = "VLAD_TRUSTED_CODE"
PART = "lvlm"


def load_remote_code_parts(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """{"lvlm": model} of a pipeline's folder if its class is remote code, else {}.

    Raises UserError, before any of the code runs, if it is not trusted.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    library = str((index.get(PART) or [None])[0])
    if library.partition(".")[0] != "transformers_modules":
        return {}
    directory = folder / PART
    trusted_hash = code_hash(directory)
    if os.environ.get(TRUSTED) != trusted_hash:
        files = ", ".join(path.name for path in sorted(directory.glob("*.py"))) or "which is missing"
        raise UserError(
            f"The LVLM in {directory} needs remote code ({files}); read it, then set the environment variable"
            f" {TRUSTED}={trusted_hash} to let it run."
        )
    check_code_is_pinned(str(directory), None)
    with report_load_errors("The LVLM's code", str(directory)):
        label, remedy = f"The LVLM in {directory}", "copy it here again, or train it anew"
        arguments = {"trust_remote_code": True, "local_files_only": True, "dtype": dtype}
        model = load_complete(AutoModel, directory, label, remedy, heads_allowed=True, pass_on=True, **arguments)
    # diffusers looks for the class under the module name in the index, that of the run that saved it.
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
