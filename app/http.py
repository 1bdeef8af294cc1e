"""What every route shares: session, caller, pages, request ids, limits, and how a refusal looks."""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Generic, Literal, TypeVar

import psycopg
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import auth
from app.auth import Project
from app.db import new_session
from app.disks import NoSpace
from app.errors import InvalidRequest, NotAuthenticated, ServiceError, StorageFull, TooMany, Unavailable
from app.monitoring import lines, requests
from app.pages import Page
from app.reads import Reads
from app.settings import get_settings
from app.storage import Damaged

log = logging.getLogger(__name__)

UPLOADS = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")
"""Where bodies may be as long as a file; uploads bound themselves."""

T = TypeVar("T")


# Dependencies are async where nothing in them waits: FastAPI runs each of the others in a thread.


async def _session() -> AsyncIterator[Session]:
    """A session connects with its first statement, in the route's thread."""
    with new_session() as session:
        yield session


SessionDep = Annotated[Session, Depends(_session)]
_bearer = HTTPBearer(auto_error=False, description="An API key of this server.")


BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _reads(request: Request) -> Reads:
    found: Reads = request.app.state.reads
    return found


ReadsDep = Annotated[Reads, Depends(_reads)]


async def _caller(request: Request, reads: ReadsDep, sent: BearerDep) -> Project:
    project = await auth.caller(reads, sent.credentials if sent else "")
    lines.also_about(project=project.id, **{"job": job} if (job := request.path_params.get("job_id")) else {})
    return project


CallerDep = Annotated[Project, Depends(_caller)]
After = Annotated[str | None, Query(description="Id of the last item of the page before.", max_length=300)]


Order = Annotated[Literal["asc", "desc"], Query(description="By the time of creation; `desc`: newest first.")]


def limit_query(default: int, most: int) -> Any:
    """How many items a page may have."""
    return Annotated[int, Query(ge=1, le=most, description=f"Items a page; {default} if absent.")]


class ListRead(BaseModel, Generic[T]):
    """A page of a list, in OpenAI's shape."""

    object: str = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


def list_of(page: Page[Any], shown: list[T]) -> ListRead[T]:
    """A page as it is answered; its ids are what a client sends back as `after`."""
    ids = [row.id for row in page.rows]
    return ListRead(
        data=shown, has_more=page.has_more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None
    )


def content_of(media_type: str, *, format: str | None = None) -> dict[int | str, Any]:  # noqa: A002  OpenAPI's word
    """How an answer that is not JSON is described, for a route's `responses`; `format` is `binary` for bytes."""
    schema = {"type": "string"} | ({"format": format} if format else {})
    return {200: {"content": {media_type: {"schema": schema}}}}


CONDITIONAL: dict[str, Any] = {
    "parameters": [
        {
            "name": "if-none-match",
            "in": "header",
            "required": False,
            "description": "The `ETag` of the answer that the caller has.",
            "schema": {"type": "string"},
        }
    ],
    "responses": {"304": {"description": "Nothing in it has changed."}},
}
"""How `conditional` is described, for a route's `openapi_extra`."""


def answer(body: BaseModel) -> Response:
    """An answer as it is: FastAPI would validate and copy what the schema has made a moment ago."""
    return Response(body.model_dump_json(), media_type="application/json")


def conditional(request: Request, body: BaseModel) -> Response:
    """An answer with its `ETag`, or 304 without a body for a caller that has it already."""
    content = body.model_dump_json().encode()
    etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    known = request.headers.get("if-none-match", "")
    if known == "*" or etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


class ErrorBody(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorRead(BaseModel):
    """OpenAI's envelope, on every answer that is not 2xx."""

    error: ErrorBody


def install(app: FastAPI) -> None:
    """Give an application the service's way of refusing, and its middleware."""
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(DataError, _no_text)
    app.add_exception_handler(Damaged, _damaged)
    app.add_exception_handler(NoSpace, _full)
    for away in (OperationalError, InterfaceError, PoolTimeout, psycopg.OperationalError):
        app.add_exception_handler(away, _database_away)
    app.add_middleware(RequestMiddleware, max_body_bytes=get_settings().max_body_bytes)
    origins = [origin.strip() for origin in get_settings().cors_origins.split(",") if origin.strip()]
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            # Whichever the page asks for: the stock clients send a dozen of their own, and more with each version. What
            # lets a page in is its origin and the key that it holds; there are no cookies to ride on.
            allow_headers=["*"],
            expose_headers=["etag", "x-request-id", "retry-after", "x-log-start"],
            max_age=600,
        )


def envelope(error: ServiceError) -> JSONResponse:
    """A refusal as it is answered."""
    body = ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)
    again = error.status_code in (TooMany.status_code, Unavailable.status_code)
    headers = {"retry-after": "1"} if again else None
    if error.status_code == NotAuthenticated.status_code:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse({"error": body.model_dump()}, status_code=error.status_code, headers=headers)


def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)  # noqa: S101  registered for this class only
    return envelope(error)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101  registered for this class only
    return envelope(invalid_request(list(error.errors()), error.body))


def _routing(request: Request, error: Exception) -> JSONResponse:
    """404 and 405 of the router, and what Starlette refuses by itself."""
    assert isinstance(error, HTTPException)  # noqa: S101  registered for this class only
    refusal = InvalidRequest(str(error.detail))
    refusal.status_code = error.status_code
    if error.status_code == 404:
        refusal.message = f"Unknown URL: {request.method} {request.url.path}. The API is described at /docs."
    if error.status_code == 405:
        refusal.message = f"{request.method} is not allowed on {request.url.path}."
    response = envelope(refusal)
    response.headers.update(error.headers or {})
    return response


def _no_text(_: Request, error: Exception) -> JSONResponse:
    """What PostgreSQL refuses as a value, such as half a surrogate pair, and no field's own rule has caught."""
    log.warning("a value was refused by the database: %s", error)
    return envelope(InvalidRequest("The request has characters or numbers that cannot be stored."))


def _damaged(_: Request, error: Exception) -> JSONResponse:
    log.error("the storage has lost something: %s", error)
    return envelope(ServiceError(f"The storage has lost what was asked for: {error}.", code="storage_damaged"))


def _full(_: Request, error: Exception) -> JSONResponse:
    log.error("no room for what arrives: %s", error)
    return envelope(
        StorageFull("The storage of this service is full: nothing of the request was kept. Tell whoever runs it.")
    )


def _database_away(_: Request, error: Exception) -> JSONResponse:
    log.warning("the database does not answer: %s", error)
    return envelope(Unavailable("The database does not answer just now. Try again."))


def invalid_request(errors: list[Any], body: Any) -> InvalidRequest:
    """One refusal out of pydantic's list: the first field that is wrong, with all that is said of it.

    A union reports each of its branches; they share the field, and become one sentence.
    """
    located = [(_param(error, body), error) for error in errors]
    first = located[0][0]
    said = [_said(error) for param, error in located if param == first]
    message = " Or: ".join(dict.fromkeys(said))
    unknown = errors[0]["type"] in ("unknown_field", "extra_forbidden")
    code = "unknown_parameter" if unknown else "invalid_value"
    if errors[0]["type"] == "missing":
        code, message = "missing_required_parameter", "This field is required."
    if errors[0]["type"] == "json_invalid" or (
        not first and not isinstance(body, dict) and errors[0]["loc"][0] == "body"
    ):
        return InvalidRequest(
            "The body must be a JSON object, sent with 'Content-Type: application/json'.", code="invalid_json"
        )
    return InvalidRequest(f"{first}: {message}" if first else message, param=first or None, code=code)


def _param(error: Any, body: Any) -> str:
    """The field's path in the words of the request: without pydantic's names of union branches."""
    path: list[str] = []
    source, *parts = error["loc"]
    where = body if source == "body" else None
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if (isinstance(where, dict) and part in where) or (
            isinstance(where, list) and isinstance(part, int) and part < len(where)
        ):
            where = where[part]
        elif source == "body" and not (last and error["type"] == "missing"):
            continue
        path.append(str(part))
    if "field" in (error.get("ctx") or {}):
        path.append(str(error["ctx"]["field"]))
    if error["type"] == "union_tag_not_found":
        path.append("type")
    return ".".join(path)


def _said(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if message.endswith((".", "?")) else message + "."


class RequestMiddleware:
    """Names every request, bounds the bodies that are read into memory, and turns a crash into an envelope."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = "req_" + secrets.token_hex(12)
        began = time.perf_counter()
        lines.also_about(request=request_id)
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                requests.answered(scope, message["status"], began)
            await send(message)

        if "\0" in scope["path"] or b"%00" in scope["query_string"]:  # which no database takes
            await envelope(InvalidRequest("NUL characters are not allowed in an address."))(scope, receive, send_named)
            return
        try:
            bounded = receive if self._bounds_itself(scope) else self._bounded(receive)
            await self.app(scope, bounded, send_named)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            await envelope(ServiceError(f"The server failed. Tell its operator the request id {request_id}."))(
                scope, receive, send_named
            )

    def _bounds_itself(self, scope: Scope) -> bool:
        """An upload, which asks for a key first, and counts as it streams."""
        return scope["method"] == "POST" and UPLOADS.fullmatch(scope["path"]) is not None

    def _bounded(self, receive: Receive) -> Receive:
        """Count what arrives of a body."""
        arrived = 0

        async def receive_bounded() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self.max_body_bytes:
                # FastAPI turns any other exception under a body into a 400.
                raise HTTPException(413, f"The body is larger than {self.max_body_bytes} bytes.")
            return message

        return receive_bounded
