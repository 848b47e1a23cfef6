#!/usr/bin/env python3
"""checkpoint-selfcheck from a checkout: needs Python and nothing else."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from checkpoint.selfcheck import script

if __name__ == "__main__":
    script()
