"""The program checkpoint-tool."""

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
