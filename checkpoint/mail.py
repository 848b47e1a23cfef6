"""Notices as mail: composed, and submitted to a server. Loaded only when there is something to send."""

import pwd
import smtplib
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import formatdate
from os import geteuid, uname
from urllib.parse import parse_qs, unquote, urlsplit

from checkpoint.notify import IDENTIFIER, NETWORK_TIMEOUT_S, Message, NotDelivered

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def compose(message: Message, recipients: Sequence[str], sender: str | None) -> str:
    """The mail as text. Its Message-ID is made of the notice's id: mail programs show one of two alike."""
    host = uname().nodename
    mail = EmailMessage()
    mail["Subject"] = message.subject
    mail["From"] = sender or f"{pwd.getpwuid(geteuid()).pw_name}@{host}"
    mail["To"] = ", ".join(recipients)
    mail["Date"] = formatdate(localtime=False)
    mail["Message-ID"] = f"<{message.id}@{host}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday reply is wanted
    mail["X-Checkpoint-Severity"] = message.severity
    mail["X-Mailer"] = IDENTIFIER
    mail.set_content("\n".join(message.lines) + "\n")
    return mail.as_string()


def submit(url: str, message: Message) -> None:
    """Send it by ``smtp://[USER[:PASSWORD]@]HOST[:PORT]/?to=ADDRESS[&from=ADDRESS]``, or ``smtps://`` (TLS at once).

    STARTTLS is used where it is offered; a password is sent only through TLS, or to this host. Raises NotDelivered.
    """
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    recipients = [address.strip() for given in query.get("to", []) for address in given.split(",") if address.strip()]
    if not recipients or not parts.hostname:
        raise NotDelivered("its address names no server or no recipient: smtp://HOST/?to=ADDRESS")
    sender = query.get("from", [None])[0]
    secure = parts.scheme == "smtps"
    try:
        context = ssl.create_default_context()
        if secure:
            server: smtplib.SMTP = smtplib.SMTP_SSL(
                parts.hostname, parts.port or 465, timeout=NETWORK_TIMEOUT_S, context=context
            )
        else:
            server = smtplib.SMTP(parts.hostname, parts.port or (587 if parts.username else 25), timeout=NETWORK_TIMEOUT_S)
        with server:
            server.ehlo()
            if not secure and server.has_extn("starttls"):
                server.starttls(context=context)
                server.ehlo()
                secure = True
            if parts.username:
                if not secure and parts.hostname not in _LOOPBACK:
                    raise NotDelivered("the server offers no TLS, and a password is not sent in the clear")
                server.login(unquote(parts.username), unquote(parts.password or ""))
            text = compose(message, recipients, sender)
            refused = server.sendmail(sender or "", recipients, text.encode())
            if refused:
                raise NotDelivered(f"the server refused {len(refused)} of {len(recipients)} recipients")
    except smtplib.SMTPResponseException as error:
        raise NotDelivered(f"the server answered {error.smtp_code}") from None
    except smtplib.SMTPException as error:
        raise NotDelivered(f"the server did not take it ({type(error).__name__})") from None
    except ssl.SSLError as error:
        raise NotDelivered(f"no secure connection ({error.reason})") from None
