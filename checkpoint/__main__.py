"""The program checkpoint-tool."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` looks for modules in the working directory first, and a json.py there is not ours. Up to here Python
    # has imported only the package itself, and what it needs to find one (importlib, warnings).
    del sys.path[0]

import gc
from typing import NoReturn

from checkpoint import process
from checkpoint._load import load


def script() -> NoReturn:
    """One command, and the end of the process."""
    # What is being imported is no garbage: to look for some in it costs a tenth of a short command.
    gc.disable()
    main = load("checkpoint.cli:main")
    gc.freeze()
    gc.enable()
    process.leave(main())


if __name__ == "__main__":
    script()
