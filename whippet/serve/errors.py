"""What a client is told when it is refused: a status and a body in OpenAI's shape."""

from __future__ import annotations

from typing import Any

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's ``type`` by status; other 4xx are invalid requests, and 5xx the server's own."""


class ApiError(Exception):
    """A request that is not answered. ``param`` names the field that is to blame, ``code`` is for programs."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself, by the field ``param``."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)
