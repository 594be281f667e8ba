"""The scripts of configs/launch/, run as a scheduler runs them: as two local processes with SLURM's variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer_process import free_port

from vlad.config.load import load_config
from vlad.training.checkpoint import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]
# What srun does for one node: starts the tasks with their numbers, hands signals on, and ends with the worst exit code.
SRUN = """
import os, signal, subprocess, sys
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
for number in range(int(os.environ["SLURM_NTASKS"])):
    own = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NODEID": "0"}
    tasks.append(subprocess.Popen(sys.argv[1:], env={**os.environ, **own}))
sys.exit(max(abs(task.wait()) for task in tasks))
"""


@pytest.mark.long
def test_the_slurm_script_trains_two_processes_saves_when_warned_and_requeues(signs: Path, tmp_path: Path) -> None:
    (tmp_path / "srun.py").write_text(SRUN)
    environment = {
        **os.environ,
        "SRUN": f"{sys.executable} {tmp_path / 'srun.py'}",
        "SCONTROL": "echo scontrol",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
        **{"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "vlad", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"},
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"},
        **{"SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost"},
    }
    command = [str(ROOT / "configs" / "launch" / "slurm.sh"), str(signs / "config.yaml"), "name=slurm"]
    command += [f"runs={tmp_path}", "train.autoencoder.steps=2000", "trainer.checkpoint_every_steps=4"]
    words = tmp_path / "words"
    with words.open("w") as stream:
        script = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
        checkpoints = tmp_path / "slurm" / "autoencoder" / "checkpoints"
        ends = time.monotonic() + 240
        while not list_checkpoints(checkpoints) and time.monotonic() < ends:
            assert script.poll() is None, words.read_text()
            time.sleep(0.2)
        script.send_signal(signal.SIGUSR1)
        assert script.wait(120) == 0, words.read_text()
    told = words.read_text()
    assert told.count("Stopped and saved") == 1
    assert told.count("samples in 4 shards") == 1  # one of them speaks
    assert told.rstrip().endswith("scontrol requeue 4711")
    assert list_checkpoints(checkpoints)


def test_the_gpu_script_measures_its_own_runs(tmp_path: Path) -> None:
    recorder = tmp_path / "python"
    recorder.write_text('#!/bin/bash\nprintf "%s\\t" "$@" >> "$CALLS"\necho >> "$CALLS"\n', encoding="utf-8")
    recorder.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHON": str(recorder),
        "CALLS": str(tmp_path / "calls"),
        "PIXELS": "512",
        "STEPS": "7",
    }
    script = ROOT / "configs" / "launch" / "measure_gpu.sh"
    subprocess.run([script, "data.batch_size=3"], cwd=ROOT, env=environment, check=True, timeout=60)
    calls = [line.split("\t")[:-1] for line in (tmp_path / "calls").read_text(encoding="utf-8").splitlines()]
    assert [call[0] for call in calls] == [
        "tools/render_shards.py",
        "train.py",
        "tools/cache.py",
        *["tools/benchmark.py"] * 3,
    ]
    # Every option of every call exists, and the calls speak of one run, one set of signs and one cache.
    configs = [load_config(ROOT / "configs/sd15_size.yaml", [word for word in call if "=" in word]) for call in calls]
    assert {config.data.shards for config in configs} == {"data/sd15_512"}
    assert {(config.data.batch_size, config.data.image_pixels) for config in configs} == {(3, 512)}
    assert str(configs[1].directory) == "runs/sd15_512"
    assert [config.base for config in configs] == [None, None, *["runs/sd15_512"] * 4]
    assert all(config.text_training.freezes_lvlm for config in configs[2:])  # or L_align would miss its images
    places = [call[call.index("--out" if "--out" in call else "--cache") + 1] for call in calls[2:]]
    assert set(places) == {"data/sd15_512_cache"}
    assert configs[-1].makes_adapter
    assert all(call[call.index("--steps") + 1] == "7" for call in calls[3:])
