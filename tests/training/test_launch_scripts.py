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
