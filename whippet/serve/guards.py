"""Who may speak to the server: checked before anything of a request but its headers is looked at.

Host: a page on the web can have its own name resolve to 127.0.0.1 and then speak to a server there as to itself (DNS
rebinding; CVE-2024-28224). Its requests carry its name, so only known ones are answered. Origin: any page can send
requests to any server without reading the replies; a browser then says which page it was. Nothing but a page of the
server's own is let through, and no CORS header is ever sent. Key: compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from whippet.errors import UsageError
from whippet.serve.errors import ApiError

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
OPEN_PATHS = ("/health",)
"""What is told without a key."""
KEY = re.compile(r"[\x21-\x7e]+")


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach ``host``: an address of the loopback, or ``localhost``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which may stand for anything


def check_binding(host: str, keys: Sequence[str]) -> None:
    """UsageError for an address that others can reach if no key is asked of them, or for a key that none can send."""
    for key in keys:
        if not KEY.fullmatch(key):
            raise UsageError("--api-key: a key is made of printable ASCII characters without spaces")
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"--host {host}: other machines can reach that address, so a key is needed: add --api-key KEY "
            "(or --api-key auto, which makes one)"
        )


class Guards:
    """Lets through to ``app`` what may speak; everything else gets 403 or 401. ``bound`` is the address that the server
    listens on, ``names`` further hosts by which it may be called; without ``keys`` none is asked for."""

    def __init__(self, app: ASGIApp, *, bound: str, names: Sequence[str] = (), keys: Sequence[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", bound.lower(), *(name.lower() for name in names)}
        self._any_address = not is_loopback(bound)
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as refusal:
                headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else None
                await JSONResponse(refusal.body(), refusal.status, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        hosts, origins, given = (_values(scope, name) for name in (b"host", b"origin", b"authorization"))
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._known(host):
            raise ApiError(
                403, f"the host {host[:80]!r} is not served here; its name can be given with --allow-host", code="host"
            )
        if origins and [origin.lower() for origin in origins] != [f"{scope['scheme']}://{host.lower()}"]:
            raise ApiError(403, "requests from pages of other origins are not answered", code="origin")
        if self._keys and scope["path"] not in OPEN_PATHS:
            kind, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
            if not self._right(key if kind.lower() == "bearer" else ""):
                raise ApiError(401, "wanted the header 'Authorization: Bearer KEY' with a key", code="invalid_api_key")

    def _known(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # An address cannot be rebound: whoever sends one has reached it.
        return self._any_address or address.is_loopback

    def _right(self, key: str) -> bool:
        """Every key is compared whole, whatever was given."""
        digest = _digest(key.strip().encode("utf-8", "surrogateescape"))
        return sum(hmac.compare_digest(digest, one) for one in self._keys) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
