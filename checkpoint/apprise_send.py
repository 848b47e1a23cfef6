"""One notice through apprise, in a process of its own: ``python -m checkpoint.apprise_send <request.json``.

The request comes by standard input, because arguments can be read by everybody on the machine.
"""

import json
import sys

from checkpoint.notify import NO_APPRISE

try:
    import apprise
except ImportError:
    sys.exit(NO_APPRISE)

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
