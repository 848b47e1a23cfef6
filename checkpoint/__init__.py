"""Work that survives a restart: checkpoint -> restart -> wake -> resume from file.

    you, a script, an agent -- cli -- api -- model (decides) -- store (keeps) -- codec -- <store>/<id>.json
    systemd, launchd, cron  -- selfcheck -- store.scan -- monitor (judges) -- render, exit code

``Checkpoints`` opens a store, ``Checkpoints.start`` and ``resume`` give a ``Workflow``, ``Workflow.step`` runs a step.
Names are looked up when they are first used, so that ``checkpoint-selfcheck`` pays for none of them.
"""

from checkpoint._load import load

__version__ = "0.1.0"

# Not from typing: see __main__.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from checkpoint.api import Checkpoints, StepRun, Update, Workflow, owner
    from checkpoint.errors import CheckpointError
    from checkpoint.model import Checkpoint, Lease, Owner, PlanStep, Status, Step, StepStatus, View

_WHERE = {
    "Checkpoint": "model",
    "CheckpointError": "errors",
    "Checkpoints": "api",
    "Lease": "model",
    "Owner": "model",
    "PlanStep": "model",
    "Status": "model",
    "Step": "model",
    "StepRun": "api",
    "StepStatus": "model",
    "Update": "api",
    "View": "model",
    "Workflow": "api",
    "owner": "api",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "Lease",
    "Owner",
    "PlanStep",
    "Status",
    "Step",
    "StepRun",
    "StepStatus",
    "Update",
    "View",
    "Workflow",
    "__version__",
    "owner",
]


def __getattr__(name: str) -> "Any":
    if name in _WHERE:
        return load(f"checkpoint.{_WHERE[name]}:{name}")
    raise AttributeError(f"module 'checkpoint' has no attribute {name!r}")
