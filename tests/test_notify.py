"""Each channel against a real receiver: what arrives, what a failure says, and that no secret leaves its place."""

import email
import email.policy
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import receivers
from conftest import SELFCHECK, Workspace, lacking, need_program

from checkpoint import notify, programs
from checkpoint.errors import Usage
from checkpoint.notify import Message, NotDelivered
from checkpoint.store import disk

MESSAGE = Message(
    "0123abcd",
    "WARNING",
    "CHECKPOINT WARNING www: 1 opened",
    ("opened: WARNING deploy: abandoned <b>", "größe ✓"),
    {"schema": "checkpoint-notice/v1", "id": "0123abcd", "at": "2026-03-01T12:00:00Z", "severity": "WARNING", "changes": []},
)
SECRET = "hunter2-s3cr3t"


def send(specification: str, message: Message = MESSAGE, **environ: str) -> None:
    (channel,) = notify.parse([specification])
    notify.deliver(channel, message, environ)


def test_a_webhook_gets_json_and_a_key() -> None:
    with receivers.web() as web:
        send(f"{web.url}/hook?x=1")
        (request,) = web.requests
    assert (request.method, request.path) == ("POST", "/hook?x=1")
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Idempotency-Key"] == "0123abcd"
    assert request.json["id"] == "0123abcd"
    assert "größe ✓" in request.json["text"]


def test_a_user_and_password_go_into_a_header() -> None:
    with receivers.web() as web:
        send(web.url.replace("//", "//ann:s%40fe@") + "/hook")
        assert web.requests[0].headers["Authorization"] == "Basic YW5uOnNAZmU="
        assert "ann" not in web.requests[0].headers["Host"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_webhook_is_tried_three_times_with_one_key(status: int) -> None:
    with receivers.web() as web:
        web.answers = [status, status]
        send(web.url)
        assert len(web.requests) == 3
        web.answers = [status] * 3
        with pytest.raises(NotDelivered, match=f"the server answered {status}"):
            send(web.url)
        assert set(web.keys) == {"0123abcd"}


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404])
def test_what_will_not_get_better_is_not_tried_again(status: int) -> None:
    with receivers.web() as web:
        web.answers = [status]
        with pytest.raises(NotDelivered, match=f"the server answered {status}"):
            send(web.url)
        assert [request.path for request in web.requests] == ["/"], "a redirected POST would lose its body"


def test_a_server_that_dies_in_the_middle_of_its_answer_is_asked_again() -> None:
    with receivers.web() as web:
        web.mute = 1
        send(web.url)
        assert web.keys == ["0123abcd"] * 2


def test_a_server_that_hangs_takes_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("checkpoint.webhook.NETWORK_TIMEOUT_S", 0.2)
    monkeypatch.setattr("checkpoint.webhook._PAUSE_S", 0.01)
    with receivers.web() as web:
        web.delay_s = 30
        with pytest.raises(NotDelivered, match="no answer within"):
            send(web.url)
        assert len(web.requests) == 3


def test_mail_by_a_server() -> None:
    with receivers.mail() as (letters, port):
        send(f"smtp://127.0.0.1:{port}/?to=ops@example.org,ann@example.org&from=check@example.org")
        (envelope,) = letters.envelopes
        letters.refuse = True
        with pytest.raises(NotDelivered, match="the server answered 451"):
            send(f"smtp://127.0.0.1:{port}/?to=ops@example.org")
    assert envelope.rcpt_tos == ["ops@example.org", "ann@example.org"]
    letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert letter["Subject"] == MESSAGE.subject
    assert letter["Message-ID"].startswith("<0123abcd@")
    assert letter["Auto-Submitted"] == "auto-generated"
    assert "größe ✓" in letter.get_content()


def test_a_password_is_not_sent_in_the_clear() -> None:
    """127.0.0.2 is this machine too, yet not one of the names for it."""
    with receivers.mail() as (letters, port):
        with pytest.raises(NotDelivered):
            send(f"smtp://ann:{SECRET}@127.0.0.2:{port}/?to=ops@example.org")
        assert letters.envelopes == []


def test_mail_by_sendmail(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    program = workspace.path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" > {workspace.path}/args; cat > {workspace.path}/letter\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{workspace.path}:{os.environ['PATH']}")
    monkeypatch.setattr(programs, "_SENDMAIL", ())
    send("mail:ops@example.org, -oQ/tmp")
    assert (workspace.path / "args").read_text() == "-i -- ops@example.org -oQ/tmp\n", "an address is no option"
    letter = email.message_from_bytes((workspace.path / "letter").read_bytes(), policy=email.policy.default)
    assert letter["Subject"] == MESSAGE.subject


def test_syslog_on_this_host_and_elsewhere(tmp_path: Path) -> None:
    with receivers.datagrams(tmp_path / "log") as (local, _):
        send(f"syslog:{tmp_path}/log")
        first, second, third = local.read()
    assert first.startswith("<28>checkpoint-selfcheck[")
    assert first.endswith(f"{MESSAGE.subject} [0123abcd]")
    assert "abandoned" in second
    assert "größe" in third
    with receivers.datagrams() as (remote, port):
        send(f"syslog://127.0.0.1:{port}")
        assert remote.read()[0].startswith("<28>1 2026-03-01T12:00:00Z ")
    with pytest.raises(NotDelivered):
        send(f"syslog:{tmp_path}/nobody")


def test_the_journal_in_its_own_protocol(tmp_path: Path) -> None:
    with receivers.datagrams(tmp_path / "journal") as (journal, _):
        send(f"journald:{tmp_path}/journal")
        fields = dict(line.split("=", 1) for line in journal.read()[0].splitlines())
    assert fields["PRIORITY"] == "4"
    assert fields["CHECKPOINT_NOTICE_ID"] == "0123abcd"
    assert fields["MESSAGE"].startswith(MESSAGE.subject)


def test_a_command_gets_json_and_no_shell(workspace: Workspace) -> None:
    program = workspace.path / "page me"
    program.write_text(f'#!/bin/sh\ncat > {workspace.path}/got; echo "$CHECKPOINT_NOTICE_ID $1" >> {workspace.path}/args\n')
    program.chmod(0o755)
    send(f"command:'{program}' '$(touch planted);|'")
    assert json.loads((workspace.path / "got").read_text())["id"] == "0123abcd"
    assert (workspace.path / "args").read_text() == "0123abcd $(touch planted);|\n"
    program.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(NotDelivered, match="page me ended with exit status 7"):
        send(f"command:'{program}'")
    with pytest.raises(NotDelivered, match="there is no command nothing-here"):
        send("command:nothing-here")


def test_a_command_that_hangs_is_ended_with_all_of_it(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "COMMAND_LIMIT_S", 0.5)
    program = workspace.path / "hang"
    program.write_text(f"#!/bin/sh\ntrap '' TERM\nsleep 60 & echo $! > {workspace.path}/pid\nsleep 60\n")
    program.chmod(0o755)
    began = time.monotonic()
    with pytest.raises(NotDelivered, match="still running"):
        send(f"command:{program}")
    assert time.monotonic() - began < 5
    child = int((workspace.path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_the_log_is_private_holds_a_notice_once_and_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notices.jsonl"
    send(f"log:{path}")
    send(f"log:{path}")
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["id"] == "0123abcd"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(disk, "LOG_LIMIT", 300)
    for number in range(30):
        send(f"log:{path}", MESSAGE._replace(id=f"n{number}", document=dict(MESSAGE.document) | {"id": f"n{number}"}))
    kept = sorted(tmp_path.iterdir())
    assert [one.name for one in kept] == ["notices.jsonl", *(f"notices.jsonl.{n}" for n in range(1, 6))]
    ids = [json.loads(line)["id"] for one in kept[:1] + kept[1:] for line in one.read_text().splitlines()]
    assert len(ids) == len(set(ids))
    assert "n29" in ids
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    with pytest.raises(NotDelivered):
        send(f"log:{link}")
    assert not (tmp_path / "target").exists()


def test_a_desktop_notification(workspace: Workspace) -> None:
    for program in ("dbus-run-session", "notify-send"):
        need_program(program)
    service = [sys.executable, str(Path(__file__).parent / "desktop_service.py"), "shown"]
    done = workspace.run("dbus-run-session", "--", *service, SELFCHECK, "test-notify", "--notify", "desktop:")
    assert done.code == 0, done
    shown = json.loads((workspace.path / "shown").read_text())
    assert shown["app"] == "checkpoint-selfcheck"
    assert "a test of this channel" in shown["summary"]
    nobody = workspace.run(
        SELFCHECK, "test-notify", "--notify", "desktop:", env={"DBUS_SESSION_BUS_ADDRESS": "unix:path=/none"}
    )
    assert nobody.code == 2
    assert "desktop: notify-send ended with exit status 1" in nobody.err


def test_any_other_url_goes_to_apprise(workspace: Workspace) -> None:
    probe = subprocess.run([sys.executable, "-c", "import apprise"], capture_output=True, check=False)
    if probe.returncode:
        lacking("apprise is not installed")
    with receivers.web() as web:
        address = web.url.removeprefix("http://")
        send(f"json://{address}/hook")
        send(f"apprise:json://{address}/other")
        assert [request.path for request in web.requests] == ["/hook", "/other"]
        assert web.requests[0].json["title"] == MESSAGE.subject
        web.answers = [500]
        with pytest.raises(NotDelivered, match="exit status 1"):
            send(f"json://{address}/hook")


def test_what_a_machine_without_apprise_says(workspace: Workspace) -> None:
    code = (
        "import sys; sys.modules['apprise'] = None\n"
        "import runpy; sys.argv = ['apprise_send', '69']; runpy.run_module('checkpoint.apprise_send', run_name='__main__')"
    )
    assert workspace.run(sys.executable, "-c", code, input="{}").code == notify.NO_APPRISE


# --- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nonsense", "number 1 is no address"),
        ("", "number 1 is no address"),
        ("pager:ann", "there is no channel pager:"),
        ("log:", "wants a file"),
        ("command: ", "wants a command"),
        ("mail:", "wants an address"),
        ("@/nowhere/file", "cannot be read"),
    ],
)
def test_what_is_no_address(given: str, words: str) -> None:
    with pytest.raises(Usage, match=words):
        notify.parse([given])


def test_names_are_unique_and_show_no_more_than_a_host() -> None:
    given = [
        f"https://ann:{SECRET}@hooks.example.org/{SECRET}?token={SECRET}",
        f"https://hooks.example.org/{SECRET}",
        f"smtp://ann:{SECRET}@mail.example.org/?to=a@b",
        f"slack://{SECRET}/{SECRET}",
        f"command:page --token {SECRET}",
        "https://${HOST}/x",
        "stdout",
        f"https://{SECRET}\x1b[31m/",
    ]
    names = [channel.name for channel in notify.parse(given)]
    assert names == [
        "https:hooks.example.org",
        "https:hooks.example.org#2",
        "smtp:mail.example.org",
        "apprise:slack",
        "command:page",
        "https",
        "stdout",
        "https#2",
    ]


def test_places_are_filled_in_only_when_sending(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    with receivers.web() as web:
        (tmp_path / "address").write_text(f"{web.url}/${{file:{tmp_path}/token}}\n")
        send(f"@{tmp_path}/address")
        send(web.url + "/${TOKEN}/x", TOKEN="from-the-environment")
        assert [request.path for request in web.requests] == [f"/{SECRET}", "/from-the-environment/x"]
        with pytest.raises(NotDelivered, match="the environment has no TOKEN"):
            send(web.url + "/${TOKEN}/x")
        with pytest.raises(NotDelivered, match="cannot be read"):
            send(web.url + "/${file:/nowhere}/x")


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:{}@127.0.0.1:1/{}?x={}",
        "https://ann:{}@127.0.0.1:1/{}?x={}",
        "http://[{}/{}{}",
        "http://127.0.0.1:{}/{}{}",
        "smtp://ann:{}@127.0.0.1:1/?to={}{}",
        "smtps://ann:{}@127.0.0.1:1/?to={}{}",
        "smtp://127.0.0.1:{}/?to={}{}",
        "json://{}@127.0.0.1:1/{}{}",
        "slack://{}/{}{}",
        "command:false {}{}{}",
        "log:/nowhere/{}/{}{}",
        "syslog:/nowhere/{}/{}{}",
        "syslog://127.0.0.1:{}{}{}",
    ],
)
def test_no_failure_tells_a_secret(workspace: Workspace, address: str) -> None:
    """Written into a file, or filled in from the environment: neither the words, nor what processes show."""
    (workspace.path / "address").write_text(address.format(SECRET, SECRET, SECRET))
    place = address.format("${SECRET}", "${SECRET}", "${SECRET}") if not address.startswith("command") else "command:false"
    args = ["--notify", f"@{workspace.path}/address", "--notify", place]
    done = workspace.selfcheck("test-notify", *args, env={"SECRET": SECRET})
    assert done.code in (2, 3), done
    assert done.out == ""
    assert done.err
    assert SECRET not in done.err
    workspace.tool("start", "deploy", "--steps", "a")
    time.sleep(1.1)
    checked = workspace.selfcheck(
        "--threshold", "1s", "--log", "audit", "--metrics", "m.prom", "--html", "p.html", *args, env={"SECRET": SECRET}
    )
    assert SECRET not in checked.out + checked.err
    for path in workspace.path.rglob("*"):
        if path.is_file() and path.name != "address":
            assert SECRET.encode() not in path.read_bytes(), path


def test_a_secret_is_in_no_argument_of_a_process(workspace: Workspace) -> None:
    """apprise runs in a process of its own: what it is asked comes by its standard input."""
    if subprocess.run([sys.executable, "-c", "import apprise"], capture_output=True, check=False).returncode:
        lacking("apprise is not installed")
    with receivers.web() as web:
        web.delay_s = 2
        (workspace.path / "address").write_text(web.url.replace("http://", f"json://ann:{SECRET}@"))
        argv = [SELFCHECK, "test-notify", "--notify", f"@{workspace.path}/address"]
        with subprocess.Popen(argv, cwd=workspace.path, stderr=subprocess.DEVNULL) as running:
            deadline = time.monotonic() + 20
            while not web.requests and time.monotonic() < deadline:
                time.sleep(0.05)
            assert web.requests
            shown: list[Any] = []
            for entry in Path("/proc").iterdir():
                if entry.name.isdecimal():
                    try:
                        shown.append((entry / "cmdline").read_bytes())
                    except OSError:
                        continue
            assert any(b"apprise_send.py" in line for line in shown)
            assert not any(SECRET.encode() in line for line in shown)
            web.released.set()
            assert running.wait(20) == 0
