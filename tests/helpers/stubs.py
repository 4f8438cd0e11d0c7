"""Stand-ins for the commands of Slurm: they keep what they are asked, and answer with text."""

from pathlib import Path


def stub(folder: Path, name: str, *lines: str) -> None:
    """An executable of this name that runs a few lines of shell."""
    (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / name).chmod(0o755)
