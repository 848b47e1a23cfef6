"""The one place that asks the kernel on behalf of the model: who holds a run, and what is still at work on its steps.

In this order, for the owner of a claim; what cannot be answered is unknown, which counts as alive until the claim ends:

1. the process: gone, a zombie, or another one under its pid: dead. Another boot: dead if the last sign of life was
   written before this boot began, on a file system that only this kernel writes to.
2. where the process cannot be seen (a container, a namespace), the lock that the owner holds for the life of its claim:
   held, it lives; free, it is dead.
3. a claim that holds by time and was made in a terminal ends with that session, if not before.
"""

import functools
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, Protocol

from checkpoint import model, process
from checkpoint.model import Checkpoint, Lease, Standing, Step, StepProcess
from checkpoint.process import Liveness, Process, Processes


class Ground(Protocol):
    """What is asked of a store."""

    @property
    def shared(self) -> bool:
        """Whether other hosts may write to it."""

    def is_attested(self, checkpoint: Checkpoint) -> bool | None:
        """Whether the holder of the claim holds its lock too; None where it never took one, or that cannot be told."""


def standing(checkpoint: Checkpoint, ground: Ground, now: datetime) -> Standing:
    """What is true of this run at this moment."""
    return Look().standing(checkpoint, ground, now)


class Look:
    """Answers for one moment: each process is asked for once, and orphans are searched for once, however many runs ask."""

    def __init__(self) -> None:
        self._liveness = functools.cache(process.liveness)
        self._processes = functools.cache(process.processes)

    def standing(self, checkpoint: Checkpoint, ground: Ground, now: datetime) -> Standing:
        """What is true of this run at this moment."""
        return model.standing(checkpoint, _Kernel(ground, self._liveness, self._processes), now)


class _Kernel(NamedTuple):
    """model.Kernel, for the runs of one store."""

    ground: Ground
    liveness: Callable[[Process, float | None], Liveness]
    processes: Callable[[], Processes]

    def owner(self, checkpoint: Checkpoint) -> str:
        lease = checkpoint.lease
        if lease is None:
            return "unknown"
        if lease.pid is None and lease.terminal is not None:
            return self._terminal(checkpoint, lease)
        found = self._ask(checkpoint, lease)
        if found in ("alive", "dead") or lease.pid is None:
            return found
        attested = self.ground.is_attested(checkpoint)
        if attested is None:
            return found
        return "alive" if attested else "dead"

    def process(self, checkpoint: Checkpoint, process: StepProcess) -> str:
        found = self._ask(checkpoint, process)
        if found in ("alive", "dead") or self.ground.is_attested(checkpoint) is not False:
            return found
        # The owner has died, and with it, as far as can be told, what it did: a restarted container goes on at once.
        return "dead"

    def has_orphans(self, checkpoint: Checkpoint, step: Step) -> bool:
        began, lease = step.begun_at or checkpoint.created_at, checkpoint.lease
        group, session, since = lease.pid if lease else None, None, process.ticks(began.timestamp())
        if step.process is not None:
            group, session, since = step.process.group, step.process.session, step.process.begun_ticks
            here = process.this_boot()
            if step.process.boot_id != here.boot_id and None not in (step.process.boot_id, here.boot_id):
                return False  # nothing outlives a boot
            if (step.process.pid_ns, step.process.time_ns) != (here.pid_ns, here.time_ns):
                since = None  # its numbers are those of another namespace
        if since is None:
            group, session, since = None, None, 0
        return self.processes().outlive(checkpoint.run_id, step.name, group, session, since)

    def _terminal(self, checkpoint: Checkpoint, lease: Lease) -> str:
        found = self._ask(checkpoint, lease._replace(pid=lease.terminal))
        return "unknown" if found == "alive" else found

    def _ask(self, checkpoint: Checkpoint, identity: Lease | StepProcess) -> str:
        named = Process(identity.host, identity.boot_id, identity.pid_ns, identity.pid, identity.pid_started, identity.time_ns)
        if named.boot_id == process.this_boot().boot_id:
            return self.liveness(named, None)
        if self.ground.shared:
            return "unknown"  # machines that were copied from one image may both be up
        return self.liveness(named, checkpoint.heartbeat_at.timestamp())
