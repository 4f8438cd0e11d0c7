"""On what a benchmark has run: processor, GPUs, their driver, and the packages that count."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda130")
CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str]:
    """By what a reader is to see it as; ``device`` first."""
    about = {"device": cpu_model()}
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        about = {"device": f"{len(gpus)} x {gpus[0]}", "driver": _driver(), "CPU": cpu_model()}
    about["cores"] = str(len(os.sched_getaffinity(0)))
    about["Python"] = platform.python_version()
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            about[name] = version(name)
    return about


def cpu_model() -> str:
    """As the kernel names it; what Python knows is the architecture at most."""
    with suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", CPUINFO.read_text(), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.split("\n")[0].strip()
    return "unknown"
