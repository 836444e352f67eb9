"""What ``/openapi.json`` says: the routes, and the tables of ``schema.py`` as JSON schemas (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import whippet
from whippet.serve.fields import Json, record_schema
from whippet.serve.schema import CHAT, COMPLETION

REFUSALS = {
    "400": "wrong in itself; error.param names the field",
    "401": "a key is wanted",
    "403": "another host or origin than the server's",
    "404": "no such model, or nothing here",
    "405": "not by this method",
    "408": "the body took too long",
    "413": "the body is too large",
    "415": "the body is no JSON",
    "429": "as many requests wait as may",
    "500": "the server failed",
    "503": "the server is stopping",
}
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
REPLY: Json = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object", "required": ["index", "finish_reason"]}},
        "usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"]},
    },
}
MODEL: Json = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"}},
}
MODELS: Json = {"type": "object", "properties": {"data": {"type": "array", "items": MODEL}}}


def document(models: Sequence[str]) -> Json:
    """The whole description of a server that answers to the names ``models``."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "whippet",
            "version": whippet.__version__,
            "description": "OpenAI's interface. A field that is not listed is refused, not ignored.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _asked("Answer a conversation", "ChatRequest")},
            "/v1/completions": {"post": _asked("Continue a text", "CompletionRequest")},
            "/v1/models": {"get": _told("The models that are served", MODELS)},
            "/v1/models/{name}": {"get": _told("One of them", MODEL) | {"parameters": [name]}},
            "/health": {"get": _told("Whether the engine answers", {"type": "object"}) | {"security": []}},
            "/metrics": {"get": _told("Figures for Prometheus", {"type": "string"}, "text/plain")},
            "/openapi.json": {"get": _told("This", {"type": "object"})},
        },
        "components": {
            "schemas": {
                "ChatRequest": _with_models(record_schema(CHAT), models),
                "CompletionRequest": _with_models(record_schema(COMPLETION), models),
                "Reply": REPLY,
                "Error": ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _with_models(schema: Json, models: Sequence[str]) -> Json:
    schema["properties"]["model"] |= {"enum": list(models)}
    return schema


def _asked(summary: str, schema: str) -> Json:
    body = {"required": True, "content": {"application/json": {"schema": _ref(schema)}}}
    told = _told(summary, _ref("Reply"))
    told["responses"]["200"]["content"]["text/event-stream"] = {}
    return told | {"requestBody": body}


def _told(summary: str, schema: Json, kind: str = "application/json") -> Json:
    error = {"application/json": {"schema": _ref("Error")}}
    refusals = {status: {"description": about, "content": error} for status, about in REFUSALS.items()}
    answered = {"200": {"description": summary, "content": {kind: {"schema": schema}}}}
    return {"summary": summary, "responses": answered | refusals}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
