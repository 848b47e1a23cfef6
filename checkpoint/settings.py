"""The self-check's configuration file: TOML, each key an option of the command line. Loaded only where one is named.

root = ["/srv/work"]
threshold = "15m"
notify = ["mail:ops@example.org", "https://hooks.example.org/${HOOK_TOKEN}"]
"""

import os
import re
import stat
import tomllib
from typing import Any

from checkpoint.config import parse_duration
from checkpoint.errors import Usage

_TEXTS = frozenset({"state", "log", "metrics", "html", "ping"})
_LISTS = frozenset({"store", "root", "notify"})
_DURATIONS = frozenset({"threshold", "critical", "repeat", "hard_age", "every", "timeout"})
_FLAGS = frozenset({"quiet", "recovery", "json"})
KNOWN = _TEXTS | _LISTS | _DURATIONS | _FLAGS


def read(path: str) -> dict[str, Any]:
    """Option -> value, durations in seconds. Raises Usage, naming the line and the key."""
    try:
        # A named pipe would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError
            content = file.read(1 << 20).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text file"
        raise Usage(f"the configuration {path} cannot be read: {reason}") from None
    try:
        fields = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise Usage(f"{path}: {error}") from None
    return {_option(name, content, path): _value(name, value, content, path) for name, value in fields.items()}


def _option(name: str, content: str, path: str) -> str:
    option = name.replace("-", "_")
    if option not in KNOWN:
        known = ", ".join(sorted(KNOWN))
        raise Usage(f"{path}{_line(name, content)}: there is no setting {name!r}; there are {known}")
    return option


def _value(name: str, value: Any, content: str, path: str) -> Any:
    option = name.replace("-", "_")
    at = f"{path}{_line(name, content)}: {name}"
    if option in _FLAGS:
        if isinstance(value, bool):
            return value
        raise Usage(f"{at} must be true or false")
    if option in _LISTS:
        values = [value] if isinstance(value, str) else value
        if isinstance(values, list) and values and all(isinstance(item, str) and item for item in values):
            return values
        raise Usage(f"{at} must be a text, or a list of texts")
    if not isinstance(value, str) or not value:
        raise Usage(f'{at} must be a text, in "quotes"')
    if option in _DURATIONS:
        try:
            return parse_duration(value)
        except Usage as error:
            raise Usage(f"{at}: {error.message}") from None
    return value


def _line(name: str, content: str) -> str:
    """`` line 3``: TOML's reader keeps no places, so the key is looked for where it must begin a line."""
    pattern = re.compile(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=.\]]|\s*\[+\s*[\"']?{re.escape(name)}\b")
    for number, line in enumerate(content.splitlines(), 1):
        if pattern.match(line):
            return f" line {number}"
    return ""
