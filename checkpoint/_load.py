"""Opens what must not be opened at start-up: heavy leaf modules by name, and the data files that ship with the package."""

import importlib
import os.path

# Not from typing: see __main__.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PACKAGE = os.path.dirname(os.path.realpath(__file__))  # pathlib would cost each start of the self-check 3 ms


def load(target: str) -> "Any":
    """The object named ``"module:attribute"``; its module is imported now, not at start-up."""
    module, _, attribute = target.partition(":")
    # Not from sys.modules: a module that another thread still imports stands there half made.
    return getattr(importlib.import_module(module), attribute)


def data_path(name: str) -> str:
    """Where a packaged data file stands, for example ``schemas/checkpoint.v1.schema.json``.

    In a wheel the folders stand inside the package; in a checkout or an editable install beside it.

    Raises FileNotFoundError when the installation is incomplete.
    """
    for root in (_PACKAGE, os.path.dirname(_PACKAGE)):
        path = os.path.join(root, name)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"{name} is missing from this installation")
