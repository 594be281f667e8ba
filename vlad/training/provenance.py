"""Provenance of a run: command, git revision, library versions, machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import vlad
from vlad.utils.errors import counted
from vlad.utils.secrets import redacted

LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "xformers")


def describe_start() -> dict[str, Any]:
    """Facts of this process and machine, for the run's report."""
    return {
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "command": redacted(shlex.join(["python", *sys.argv])),
        "revision": git_revision(),
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version}" for name, version in _versions().items()),
        "device": _device(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}",
    }


def git_revision() -> str:
    """The commit of the code, marked when files have changed since; without git the version."""
    place = Path(vlad.__file__).resolve().parent
    try:
        commit = _git(place, "rev-parse", "HEAD")
        # Of the code's own folder: files of runs beside it do not count.
        changed = _git(place, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return f"vlad {vlad.__version__}, not a git checkout"
    return commit + (", with changes" if changed else "")


def _git(place: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(place), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    return cpu_name()


def cpu_name() -> str:
    """The CPU, with torch's number of threads."""
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"
