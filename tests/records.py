"""Records for the tests below the command line: one clock, one owner, one plan."""

from datetime import UTC, datetime, timedelta
from typing import Any

from checkpoint import model
from checkpoint.model import Checkpoint, Owner, PlanStep

T0 = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
FINGERPRINT = "ab" * 32
RUN_ID = "019cab00-0000-7000-8000-000000000001"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def owner(name: str = "ann", *, pid: int | None = 41, started: int = 7, lease_s: int | None = None) -> Owner:
    """By default one that is proven by its process; with ``pid`` None one that holds by time."""
    if pid is None:
        return Owner(name, "h" * 16, "boot", 1, None, None, lease_s or 1800)
    return Owner(name, "h" * 16, "boot", 1, pid, started, lease_s)


def run(*steps: str | PlanStep, by: Owner | None = None, open_plan: bool = False, **more: Any) -> Checkpoint:
    """A fresh run of ``deploy`` with these steps (a, b, c unless given)."""
    plan = [step if isinstance(step, PlanStep) else PlanStep(step) for step in (steps or ("a", "b", "c"))]
    settings: dict[str, Any] = {
        "id": "deploy",
        "workflow": "deploy",
        "run_id": RUN_ID,
        "idempotency_key": None,
        "fingerprint": FINGERPRINT,
        "plan": None if open_plan else plan,
        "owner": by or owner(),
        "now": T0,
    }
    return model.new(**(settings | more))
