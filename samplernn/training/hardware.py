"""What a run is made of besides its options: machine, memory, code. Nothing here names a host or a person."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_GIT_SECONDS = 5.0


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GB (of 10^9 bytes; 0: unknown), GPUs, and torch's version."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(total_bytes() / 1e9, 1),
        "gpus": ", ".join(gpus) or "none",
        "torch": str(torch.__version__),  # a subclass, which YAML refuses
    }


def processor() -> str:
    """Its name, as Linux says it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def revision() -> str | None:
    """Git's name of the commit that the current directory is at; None where there is none."""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def memory_mb(device: torch.device) -> dict[str, float]:
    """Memory in use now, in MB (10^6 bytes).

    Args:
        device: of the training.

    Returns:
        ``memory/process_mb``: resident memory of this process (where the system does not say, its largest so
        far, or 0); ``memory/gpu_mb``: what torch holds of the device's memory, if that is a GPU.
    """
    found = {"memory/process_mb": round(_resident_bytes() / 1e6, 1)}
    if device.type == "cuda":
        found["memory/gpu_mb"] = round(torch.cuda.memory_reserved(device) / 1e6, 1)
    return found


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        if sys.platform == "win32":
            return 0
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_bytes() -> int:
    """Memory of this machine; 0: unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
