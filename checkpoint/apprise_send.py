"""One notice through apprise, in a process of its own:
``python -I .../apprise_send.py STATUS [DIRECTORY]... <request.json``.

STATUS is the exit status where apprise is not installed. ``-I`` keeps the working directory and PYTHONPATH out of the
modules' path, so the directories of modules are arguments, and nothing of the package is imported. The request comes by
standard input, because arguments can be read by everybody on the machine.
"""

import json
import sys

# Behind Python's own: a directory of modules may hold one of the same name.
sys.path += [path for path in sys.argv[2:] if path not in sys.path]
try:
    import apprise
except ImportError:
    sys.exit(int(sys.argv[1]))

_KINDS = {"OK": "success", "WARNING": "warning", "UNKNOWN": "warning", "CRITICAL": "failure"}


def main() -> int:
    """Exit status 0 where the service has taken it."""
    request = json.load(sys.stdin)
    service = apprise.Apprise()
    if not service.add(request["url"]):
        return 64
    taken = service.notify(
        title=request["title"], body=request["body"], notify_type=_KINDS[request["severity"]], body_format="text"
    )
    return 0 if taken else 1


if __name__ == "__main__":
    sys.exit(main())
