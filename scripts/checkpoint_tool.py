#!/usr/bin/env python3
"""checkpoint-tool from a checkout, without installing it (its dependencies must be there)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from checkpoint.__main__ import script

if __name__ == "__main__":
    script()
