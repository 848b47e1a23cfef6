"""Delivery of notices. Each channel is one address, fails for itself, and takes a bounded time.

Addresses may hold ``${NAME}`` (the environment) and ``${file:PATH}``, filled in only at the moment of sending. Whatever
is said about a channel uses its name, which is made of its scheme and host: what stands elsewhere in an address, or what a
library says about it, may be a secret.

A notice may come twice where the receiver took it and we were killed before that was written down. So each carries its
id: ``Idempotency-Key`` (webhooks), ``Message-ID`` (mail), ``CHECKPOINT_NOTICE_ID`` (commands, the journal); ``log:`` looks
for it before it writes.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from checkpoint import process, programs
from checkpoint._load import data_path, load
from checkpoint.apart import write_failure
from checkpoint.errors import Usage
from checkpoint.store.disk import append_line

IDENTIFIER = "checkpoint-selfcheck"
COMMAND_LIMIT_S = 30
NETWORK_TIMEOUT_S = 5
RETRIES = 2
# A little longer than all attempts together: it ends what trickles in a byte at a time.
_NETWORK_LIMIT_S = 20
_FILE_LIMIT_S = 10
_LIMITS_S = {"command": COMMAND_LIMIT_S + 10, "mail": COMMAND_LIMIT_S + 10, "apprise": COMMAND_LIMIT_S + 10}

_PLACE = re.compile(r"\$\{(file:[^}]+|[A-Za-z_][A-Za-z0-9_]*)\}")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.DOTALL)
_FACILITY_DAEMON = 3
_PRIORITIES = {"OK": 5, "WARNING": 4, "UNKNOWN": 4, "CRITICAL": 2}


class Message(NamedTuple):
    """A notice in the forms that channels want. ``subject`` and ``lines`` are free of control characters."""

    id: str
    severity: str
    subject: str
    lines: tuple[str, ...]
    document: Mapping[str, Any]
    attempt: int = 1


class Channel(NamedTuple):
    """``name``: unique, and safe to show; ``address``: what stands behind the scheme, with nothing filled in yet."""

    name: str
    scheme: str
    address: str


class _TooLong(BaseException):
    """The time is over. No Exception, for libraries and retries that take a timeout for one of theirs would go on."""


class NotDelivered(Exception):
    """The channel did not take it. The text names no part of an address but its host."""


class _Ended(NotDelivered):
    """A program ended, and not with exit status 0."""

    def __init__(self, program: str, status: int) -> None:
        super().__init__(f"{program} ended with exit status {status}")
        self.status = status


Secrets = Callable[[str], str]
"""Fills the places of an address; see ``filler``."""


def parse(specifications: Sequence[str]) -> tuple[Channel, ...]:
    """Channels from what was given with --notify. ``@FILE`` reads one from a file. Raises Usage, naming no secret."""
    channels: list[Channel] = []
    for number, given in enumerate(specifications, 1):
        text = _from_file(given[1:]) if given.startswith("@") else given
        match = _SCHEME.fullmatch(text)
        scheme, address = (match[1], match[2]) if match else (text, "")
        if match is None and text not in ("stdout", "stderr", "desktop", "syslog", "journald"):
            raise Usage(f"--notify number {number} is no address: it begins with none of {', '.join(SENDERS)}, and is no URL")
        if scheme not in SENDERS:
            if not address.startswith("//"):
                raise Usage(f"--notify number {number}: there is no channel {scheme}:")
            scheme, address = "apprise", text
        name = _name(scheme, address)
        if scheme in _WANTING and not address.strip():
            raise Usage(f"--notify {name} wants {_WANTING[scheme]}")
        count = sum(channel.name.partition("#")[0] == name for channel in channels)
        channels.append(Channel(f"{name}#{count + 1}" if count else name, scheme, address))
    return tuple(channels)


def deliver(channel: Channel, message: Message, environ: Mapping[str, str]) -> None:
    """Send it, within a bounded time. Raises NotDelivered."""
    try:
        with _limited(_LIMITS_S.get(channel.scheme, _NETWORK_LIMIT_S)):
            SENDERS[channel.scheme](channel, message, lambda address: fill(address, environ))
    except NotDelivered:
        raise
    except (TimeoutError, _TooLong):
        raise NotDelivered("no answer in time") from None
    except subprocess.TimeoutExpired as error:
        raise NotDelivered(f"still running after {error.timeout:.0f} s: ended") from None
    except OSError as error:
        raise NotDelivered(error.strerror or type(error).__name__) from None
    except (ValueError, OverflowError):
        raise NotDelivered("its address is not right") from None
    except Exception as error:  # noqa: BLE001 - one channel must stop no other; its text may hold the address
        raise NotDelivered(f"it failed ({type(error).__name__})") from None


def ping(address: str, end: str, body: str, environ: Mapping[str, str]) -> None:
    """Tell a watcher of cron jobs that the check began (``/start``), was good (``""``) or was not (``/fail``).

    Raises NotDelivered.
    """
    try:
        with _limited(_NETWORK_LIMIT_S):
            base, mark, query = fill(address, environ).partition("?")
            load("checkpoint.webhook:send")(base.rstrip("/") + end + mark + query, body.encode(), {}, retries=0)
    except NotDelivered:
        raise
    except _TooLong:
        raise NotDelivered("no answer in time") from None
    except Exception as error:  # noqa: BLE001 - a ping that fails must not stop the check
        raise NotDelivered(f"it failed ({type(error).__name__})") from None


def fill(address: str, environ: Mapping[str, str]) -> str:
    """The address with its places filled in. Raises NotDelivered, naming the place and never a value."""

    def value(match: re.Match[str]) -> str:
        place = match[1]
        if place.startswith("file:"):
            try:
                return _from_file(place[5:])
            except Usage as error:
                raise NotDelivered(error.message) from None
        if place not in environ:
            raise NotDelivered(f"the environment has no {place}")
        return environ[place]

    return _PLACE.sub(value, address)


def host_of(address: str) -> str:
    """The host in a URL, or an empty string: the only part of it that is shown."""
    try:
        # What will be filled in is no part of a name: with a sign that no host has, it makes none.
        host = urlsplit(_PLACE.sub("$", address)).hostname or ""
    except ValueError:
        return ""
    return host if re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", host) else ""


# --- the channels ------------------------------------------------------------------------------------------------------


def _stream(channel: Channel, message: Message, _: Secrets) -> None:
    text = "\n".join((message.subject, *message.lines))
    if channel.scheme == "stdout":
        process.write_stdout(text.encode("utf-8", "backslashreplace") + b"\n")
    elif os.write(2, text.encode("utf-8", "backslashreplace") + b"\n") == 0:
        raise NotDelivered("nothing could be written")


def _log(channel: Channel, message: Message, secrets: Secrets) -> None:
    line = load("json:dumps")({"event": "notice", **message.document}) + "\n"
    path, mark = secrets(channel.address), f'"id": "{message.id}"'.encode()
    failure = write_failure(lambda: append_line(path, line.encode(), unless=mark), _FILE_LIMIT_S)
    if failure is not None:
        raise NotDelivered(failure)


def _command(channel: Channel, message: Message, _: Secrets) -> None:
    _run(shlex.split(channel.address), load("json:dumps")(message.document), message)


def _syslog(channel: Channel, message: Message, secrets: Secrets) -> None:
    address = secrets(channel.address)
    code = _FACILITY_DAEMON * 8 + _PRIORITIES[message.severity]
    if address.startswith("//"):
        parts = urlsplit("syslog:" + address)
        found = socket.getaddrinfo(parts.hostname or "", parts.port or 514, type=socket.SOCK_DGRAM)[0]
        out = socket.socket(found[0], found[1])
        place: Any = found[4]
        header = f"<{code}>1 {message.document['at']} {os.uname().nodename} {IDENTIFIER} {os.getpid()} {message.id} - "
    else:
        out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        place = address or ("/var/run/syslog" if sys.platform == "darwin" else "/dev/log")
        header = f"<{code}>{IDENTIFIER}[{os.getpid()}]: "
    with out:
        out.settimeout(NETWORK_TIMEOUT_S)
        out.connect(place)
        # All lines or none: a receiver that is gone refuses the first one.
        for line in (f"{message.subject} [{message.id}]", *message.lines):
            out.send((header + line).encode()[:1024])


def _journald(channel: Channel, message: Message, secrets: Secrets) -> None:
    # The journal's native protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    fields = {
        "MESSAGE": " / ".join((message.subject, *message.lines))[:8000],
        "PRIORITY": _PRIORITIES[message.severity],
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "CHECKPOINT_NOTICE_ID": message.id,
        "CHECKPOINT_SEVERITY": message.severity,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(NETWORK_TIMEOUT_S)
        out.connect(secrets(channel.address) or "/run/systemd/journal/socket")
        out.send("".join(f"{name}={value}\n" for name, value in fields.items()).encode())


def _mail(channel: Channel, message: Message, secrets: Secrets) -> None:
    recipients = [part.strip() for part in secrets(channel.address).split(",") if part.strip()]
    text = load("checkpoint.mail:compose")(message, recipients, None)
    _run_known(["sendmail", "-i", "--", *recipients], text, message)


def _smtp(channel: Channel, message: Message, secrets: Secrets) -> None:
    load("checkpoint.mail:submit")(f"{channel.scheme}:{secrets(channel.address)}", message)


def _desktop(_: Channel, message: Message, __: Secrets) -> None:
    body = "\n".join(message.lines)
    if sys.platform == "darwin":
        script = "on run argv\ndisplay notification (item 2 of argv) with title (item 1 of argv)\nend run"
        _run_known(["osascript", "-e", script, message.subject, body], "", message)
        return
    # Many servers read the body as markup (Desktop Notifications Specification).
    escaped = body.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    urgency = "critical" if message.severity == "CRITICAL" else "normal"
    options = ["--app-name", IDENTIFIER, "--urgency", urgency]
    _run_known(["notify-send", *options, "--", message.subject, escaped], "", message)


def _webhook(channel: Channel, message: Message, secrets: Secrets) -> None:
    document = dict(message.document) | {"text": "\n".join((message.subject, *message.lines))}
    headers = {"Content-Type": "application/json", "Idempotency-Key": message.id}
    url = f"{channel.scheme}:{secrets(channel.address)}"
    load("checkpoint.webhook:send")(url, load("json:dumps")(document).encode(), headers, retries=RETRIES)


def _apprise(channel: Channel, message: Message, secrets: Secrets) -> None:
    request = {"url": secrets(channel.address), "severity": message.severity, "title": message.subject}
    text = load("json:dumps")(request | {"body": "\n".join(message.lines)})
    argv = [*programs.isolated(data_path("apprise_send.py")), str(NO_APPRISE), *programs.module_path()]
    try:
        _run(argv, text, message, programs.only(os.environ, _APPRISE_NEEDS))
    except _Ended as ended:
        if ended.status == NO_APPRISE:
            raise NotDelivered("apprise is not installed: pip install 'checkpoint-tool[notify]'") from None
        raise NotDelivered(f"apprise ended with exit status {ended.status}") from None


SENDERS: Mapping[str, Callable[[Channel, Message, Secrets], None]] = {
    "stdout": _stream,
    "stderr": _stream,
    "log": _log,
    "command": _command,
    "syslog": _syslog,
    "journald": _journald,
    "mail": _mail,
    "smtp": _smtp,
    "smtps": _smtp,
    "desktop": _desktop,
    "http": _webhook,
    "https": _webhook,
    "apprise": _apprise,
}
_WANTING = {
    "log": "a file: log:/var/log/checkpoint.jsonl",
    "command": "a command: command:/usr/local/bin/page-me --now",
    "mail": "an address: mail:ops@example.org",
    "smtp": "a server: smtp://user@mail.example.org/?to=ops@example.org",
    "smtps": "a server: smtps://user@mail.example.org/?to=ops@example.org",
    "http": "a URL",
    "https": "a URL",
    "apprise": "a URL of apprise",
}
# What apprise and its services read: where things are, proxies, certificates, and a desktop's session.
_APPRISE_NEEDS = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}
    | {"DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"}
)
_MISSING = {
    "sendmail": "no sendmail is installed: smtp://HOST/?to=ADDRESS needs none",
    "notify-send": "notify-send is not installed (on Debian: libnotify-bin)",
}
NO_APPRISE = 69


def _name(scheme: str, address: str) -> str:
    if scheme == "apprise":
        inner = _SCHEME.fullmatch(address)
        return f"apprise:{inner[1]}" if inner else "apprise"
    if scheme in ("http", "https", "smtp", "smtps") or address.startswith("//"):
        host = host_of(f"{scheme}:{address}")
        return f"{scheme}:{host}" if host else scheme
    if scheme == "command":
        program = address.split()[0] if address.split() else ""
        return f"command:{os.path.basename(program)}"
    return scheme


def _run_known(argv: Sequence[str], text: str, message: Message) -> None:
    """Run a program of this host that nobody has named. Raises NotDelivered."""
    name, *arguments = argv
    program = programs.find(name)
    if program is None:
        raise NotDelivered(_MISSING.get(name, f"there is no command {name}"))
    _run([program, *arguments], text, message, programs.environ())


def _run(argv: Sequence[str], text: str, message: Message, given: Mapping[str, str] = os.environ) -> None:
    if not argv:
        raise NotDelivered("the command is empty")
    environ = dict(given) | {
        "CHECKPOINT_NOTICE_ID": message.id,
        "CHECKPOINT_SEVERITY": message.severity,
        "CHECKPOINT_NOTICE_ATTEMPT": str(message.attempt),
    }
    try:
        # A group of its own, so that all of it can be ended; its output is nobody's business and may hold secrets.
        running = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environ,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NotDelivered(f"there is no command {os.path.basename(argv[0])}") from None
    try:
        running.communicate(text.encode("utf-8", "backslashreplace"), timeout=COMMAND_LIMIT_S)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    if running.returncode != 0:
        raise _Ended(os.path.basename(argv[0]), running.returncode)


def _from_file(path: str) -> str:
    """The first line of a file that holds an address or a secret. Raises Usage."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise Usage(f"{path} cannot be read: {reason}") from None


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
