"""How this program starts others: none of them is, or imports, a file of the working directory.

A workspace may come from anywhere. A Python looks for modules in the working directory, by ``-m`` and where PYTHONPATH
has an empty entry; a name is looked for there where PATH has an empty entry or ``.``. What the user names (a command
of ``run`` or ``exec``, ``command:PROGRAM``) is found by the user's own PATH; what is named here is not.
"""

import os
import sys
from collections.abc import Mapping

PROGRAMS = ("sendmail", "notify-send", "osascript", "crontab", "systemctl", "launchctl")
"""Every program that this one starts without being given its name."""

_SENDMAIL = ("/usr/sbin/sendmail", "/usr/lib/sendmail")


def find(name: str) -> str | None:
    """The absolute path of a program, or None: sought in the absolute directories of PATH."""
    known = _SENDMAIL if name == "sendmail" else ()
    places = (*known, *(os.path.join(directory, name) for directory in _directories()))
    # By the rights with which it will be started: by the real user's alone, another program of that name may be taken.
    can = (place for place in places if os.path.isfile(place) and os.access(place, os.X_OK, effective_ids=True))
    return next(can, None)


def environ() -> dict[str, str]:
    """The environment for a program of PROGRAMS: what it starts is not sought in the working directory either."""
    return dict(os.environ) | {"PATH": os.pathsep.join(_directories())}


def python() -> tuple[str, ...]:
    """This interpreter, ready for ``-m`` and a module of the installation.

    ``-P`` leaves the working directory out of the modules' path, ``-E`` PYTHONPATH. ``-I`` would also leave out what
    ``pip install --user`` has installed.
    """
    return (sys.executable, "-P", "-E")


def isolated(script: str) -> tuple[str, ...]:
    """This interpreter for a script of the installation that gets everything else by its arguments."""
    return (sys.executable, "-I", script)


def module_path() -> list[str]:
    """Where this process finds modules, for a process that has to be told: absolute directories, without the working
    directory and what PYTHONPATH names from there."""
    relative = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not os.path.isabs(path)]
    try:
        left_out = {os.path.realpath(path) for path in (".", *relative)}
    except OSError:  # the working directory is gone: nothing can be found in it
        left_out = set()
    return [path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) not in left_out]


def only(given: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """These variables, in any case of their letters, and the language of messages (LC_*)."""
    return {name: value for name, value in given.items() if name.upper() in names or name.startswith("LC_")}


def _directories() -> list[str]:
    return [directory for directory in os.get_exec_path() if os.path.isabs(directory)]
