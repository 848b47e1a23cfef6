"""HTTP for notices and pings: one POST, with a timeout and retries. Loaded only when there is something to send."""

import base64
import ssl
import time
from collections.abc import Mapping
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from checkpoint import __version__
from checkpoint.notify import NETWORK_TIMEOUT_S, NotDelivered

_WORTH_RETRYING = frozenset({408, 425, 429, 500, 502, 503, 504})
_PAUSE_S = 0.5


class _NoRedirect(HTTPRedirectHandler):
    """A redirected POST arrives as a GET without its body (RFC 9110, 15.4): that is no delivery."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirect)


def send(url: str, body: bytes, headers: Mapping[str, str], *, retries: int) -> None:
    """POST ``body``; any 2xx is taken for delivered. A user and password in ``url`` go into a header.

    Raises NotDelivered, without a word of the URL.
    """
    for attempt in range(retries + 1):
        try:
            with _opener.open(_request(url, body, headers), timeout=NETWORK_TIMEOUT_S) as response:
                response.read(1 << 16)
                return
        except HTTPError as error:
            with error:
                failure = NotDelivered(f"the server answered {error.code}")
                again = error.code in _WORTH_RETRYING
        except TimeoutError:
            failure, again = NotDelivered(f"no answer within {NETWORK_TIMEOUT_S} s"), True
        except (URLError, OSError, HTTPException) as error:
            failure, again = NotDelivered(_words(error)), True
        except ValueError:
            raise NotDelivered("its address is no URL") from None
        if not again or attempt == retries:
            raise failure
        time.sleep(_PAUSE_S * 2**attempt)


def _request(url: str, body: bytes, headers: Mapping[str, str]) -> Request:
    parts = urlsplit(url)
    sent = {"User-Agent": f"checkpoint-tool/{__version__}", **headers}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    if parts.scheme not in ("http", "https"):
        raise ValueError
    return Request(  # noqa: S310 - of these two schemes only
        urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), data=body, headers=sent
    )


def _words(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(error, InvalidURL) or isinstance(reason, str):
        return "its address is no URL"
    if isinstance(reason, TimeoutError):
        return f"no answer within {NETWORK_TIMEOUT_S} s"
    if isinstance(reason, ssl.SSLError):
        return f"no secure connection ({reason.reason})"
    return (reason.strerror if isinstance(reason, OSError) else None) or type(reason).__name__
