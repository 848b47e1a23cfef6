"""Starts a script of this folder again inside of .venv, which is made first where it is missing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"


def venv(script: str, *modules: str, extra: str = "") -> None:
    """Return inside of .venv, with ``modules`` to be had there; ``extra`` is what scripts/setup needs to know for that."""
    here = Path(sys.prefix).resolve() == PYTHON.parent.parent.resolve()
    if here and all(importlib.util.find_spec(module) for module in modules):
        return
    if subprocess.run([ROOT / "scripts" / "setup", *filter(None, [extra])], check=False).returncode != 0:
        sys.exit(f"{Path(script).name}: nothing was tried: .venv could not be made")
    try:
        os.execv(PYTHON, [str(PYTHON), script, *sys.argv[1:]])
    except OSError as error:
        sys.exit(f"{Path(script).name}: nothing was tried: {PYTHON} cannot be started: {error.strerror}")
