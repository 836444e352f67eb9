"""The routes: what a client may ask, and who answers it.

Comes in: a ``Served`` model. Goes out: an ASGI application. Every error has OpenAI's shape; nothing that a request
holds is opened, fetched or run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from whippet.serve import chat, completions, metrics
from whippet.serve.answering import Answer, Arrived, Bridge
from whippet.serve.body import ClientGone, read_json
from whippet.serve.errors import ApiError
from whippet.serve.fields import Json
from whippet.serve.guards import Guards
from whippet.serve.openapi import document
from whippet.serve.schema import Asked, read_chat, read_completion
from whippet.serve.served import Prepared, Served
from whippet.serve.shape import Shape
from whippet.serve.stream import EventStream, while_connected

CLIENT_LEFT = 499
"""The status that is counted for a client which did not wait; it is never sent."""
Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def make_app(
    served: Served, *, bound: str = "127.0.0.1", names: Sequence[str] = (), keys: Sequence[str] = (), drain: float = 5.0
) -> ASGIApp:
    """The application. bound: the address that it listens on; names: further hosts by which it may be called. keys: one
    of them has to be sent with each request, if there are any. drain: seconds for the engine's last replies when the
    application ends."""
    routes = Routes(served)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        routes.bridge = Bridge()
        try:
            yield
        finally:
            served.close(drain)

    app = Starlette(
        routes=[
            routes.route("/v1/chat/completions", routes.chat, "POST"),
            routes.route("/v1/completions", routes.completion, "POST"),
            routes.route("/v1/models", routes.models),
            routes.route("/v1/models/{name:path}", routes.one_model),
            routes.route("/health", routes.health),
            routes.route("/metrics", routes.figures),
            routes.route("/openapi.json", routes.openapi),
        ],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _crash},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Guards(app, bound=bound, names=names, keys=keys)


class Routes:
    """The endpoints."""

    bridge: Bridge

    def __init__(self, served: Served) -> None:
        self._served = served
        self._metrics = metrics.Metrics()

    def route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        """``endpoint`` at ``path``, its replies counted."""

        async def counted(request: Request) -> ASGIApp:
            status = 500
            try:
                response = await endpoint(request)
                status = getattr(response, "status_code", 200)
            except ApiError as error:
                status = error.status
                response = _refusal(error)
            except ClientGone:
                status, response = CLIENT_LEFT, Response(status_code=400)
            finally:
                self._metrics.responses[path, status] += 1
            return response

        return Route(path, counted, methods=[method])

    async def chat(self, request: Request) -> ASGIApp:
        asked = read_chat(await read_json(request))
        prepared = await self._served.prepare(lambda: chat.prepare(asked, self._served))
        return await self._reply(request, asked, prepared, chat.ChatShape(asked, self._served, prepared))

    async def completion(self, request: Request) -> ASGIApp:
        asked = read_completion(await read_json(request))
        prepared = await self._served.prepare(lambda: completions.prepare(asked, self._served))
        return await self._reply(request, asked, prepared, completions.CompletionShape(asked, self._served, prepared))

    async def _reply(self, request: Request, asked: Asked, prepared: Prepared, shape: Shape) -> ASGIApp:
        started = time.monotonic()
        with ExitStack() as stack:
            answer = stack.enter_context(Answer(self._served.worker, self.bridge, prepared.requests))
            # A stream too begins when there is something to send: until then it can be refused with a status.
            first = await while_connected(request, answer.events())
            self._metrics.first_token.add(time.monotonic() - started)
            if asked.stream:
                stack.pop_all()  # the stream ends it
                return EventStream(
                    request, shape, answer, first, lambda: self._metrics.whole.add(time.monotonic() - started)
                )
            await while_connected(request, _to_the_end(answer, shape, first))
            self._metrics.whole.add(time.monotonic() - started)
        return JSONResponse(shape.whole())

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._served.names]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._served.adapter(name)
        return JSONResponse(self._model(name))

    async def health(self, request: Request) -> Response:
        healthy = self._served.worker.figures().healthy
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    async def figures(self, request: Request) -> Response:
        text = self._metrics.text(self._served.worker.figures())
        return PlainTextResponse(text, headers={"content-type": metrics.CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(list(self._served.names)))

    def _model(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": self._served.created, "owned_by": "whippet"}


async def _to_the_end(answer: Answer, shape: Shape, arrived: list[Arrived]) -> None:
    shape.grow(answer, arrived)
    while not shape.complete:
        shape.grow(answer, await answer.events())


def _refusal(error: ApiError) -> Response:
    headers = {"retry-after": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, or not by that method."""
    assert isinstance(error, HTTPException)
    told = {404: f"there is nothing at {request.url.path[:80]}", 405: f"{request.method} is not answered here"}
    refusal = ApiError(error.status_code, told.get(error.status_code, error.detail))
    return JSONResponse(refusal.body(), error.status_code, error.headers)


async def _crash(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "the server failed; its log says how").body(), 500)
