"""`vlad sample` loads torch, diffusers and the rooms that sampling needs, nothing else: it starts sooner."""

import json
import subprocess
import sys
from pathlib import Path

ROOMS = {"cli", "diffusion", "inference", "layout", "lora", "models", "pipeline", "reports", "types", "utils"}
UNNEEDED = {"lightning", "gradio", "omegaconf", "pyarrow", "rapidfuzz", "rapidocr", "torchmetrics", "webdataset"}
SAMPLE = """
import json, sys
sys.modules["peft"] = None  # diffusers imports it where it is installed; sampling without an adapter must not
from vlad.cli.sample import SAMPLE
SAMPLE(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""


def test_sampling_from_a_finished_run_loads_neither_training_nor_ocr(pipeline_folder: Path, tmp_path: Path) -> None:
    words = (pipeline_folder, "--prompt", 'a blue sign that says "HOUSE"', "--steps", "1", "--out", tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", SAMPLE, *map(str, words)], capture_output=True, text=True, check=True, timeout=300
    )
    modules = json.loads(run.stdout.splitlines()[-1])
    assert list(tmp_path.glob("*.png"))
    assert {name.split(".")[1] for name in modules if name.startswith("vlad.")} == ROOMS
    assert {name.split(".")[0] for name in modules} & UNNEEDED == set()
