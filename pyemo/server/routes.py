"""The routes: what a request for each path is answered."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, TypeVar

import anyio
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import pyemo
from pyemo.engine.tickets import Ticket
from pyemo.engine.tokens import Token
from pyemo.errors import PyemoError
from pyemo.guard import GuardEvent
from pyemo.server.answers import ChatShape, Shape, TextShape
from pyemo.server.bodies import Asked, chat_asked, read_json, read_object, text_asked
from pyemo.server.choice import n_guard_steps
from pyemo.server.metrics import Metrics
from pyemo.server.ollama import OllamaShape, ollama_asked, tag
from pyemo.server.refusals import Refusal, refusal_of
from pyemo.server.replies import Answer, Item, header_text
from pyemo.server.service import Live, Service
from pyemo.server.steering_field import HEADER, parsed
from pyemo.server.streams import EventStream, Mailbox, unless_gone

_T = TypeVar("_T")
Handler = Callable[[Request], Awaitable[Response]]

PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page may load: nothing but itself, and answers of its own origin."""

_DISCARDED = 64 << 20
"""Bytes of a body too large that are read and thrown away, so that the client hears why."""


class Routes:
    """The handlers, over one service."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self.is_draining = False

    def table(self) -> list[Route]:
        """Return every path with its handler."""
        chat = functools.partial(self._complete, chat_asked, ChatShape)
        text = functools.partial(self._complete, text_asked, TextShape)
        ollama = functools.partial(self._complete, ollama_asked, OllamaShape)
        rows: list[tuple[str, str, Handler]] = [
            ("POST", "/v1/chat/completions", chat),
            ("POST", "/v1/completions", text),
            ("POST", "/api/chat", ollama),
            ("GET", "/api/tags", self._tags),
            ("GET", "/api/version", self._version),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{name:path}", self._one_model),
            ("GET", "/v1/steering", self._steering),
            ("POST", "/v1/steering/{completion}", self._steer),
            ("GET", "/control-vectors", self._vectors),
            ("POST", "/control-vectors/apply", self._apply),
            ("POST", "/control-vectors/load", self._load),
            ("POST", "/control-vectors/unload", self._unload),
            ("POST", "/control-vectors/reload", self._reload),
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._metrics_page),
            ("GET", "/", self._page),
        ]
        return [Route(path, self._answering(way), methods=[method]) for method, path, way in rows]

    def refused(self, request: Request, error: BaseException) -> Response:
        """Return the answer for what went wrong, in the words of the route's clients."""
        refusal = refusal_of(error)
        content = refusal.envelope()
        if request.url.path.startswith("/api/"):
            content = {"error": content["error"]["message"]}
        return JSONResponse(content, status_code=refusal.status, headers=refusal.headers)

    def _answering(self, handler: Handler) -> Handler:
        """Return ``handler``, which answers in any case, and is counted."""

        async def answered(request: Request) -> Response:
            try:
                answer = await handler(request)
            except ClientDisconnect:
                answer = Response(status_code=499)  # nobody reads it
            except Exception as error:  # noqa: BLE001, every fault has an answer
                answer = self.refused(request, error)
            route = request.scope["route"].path
            self._metrics.answers.labels(route, str(answer.status_code)).inc()
            return answer

        return answered

    # --- completions ---

    async def _complete(
        self, read: Callable[[dict[str, Any]], Asked], shape: type[Shape], request: Request
    ) -> Response:
        if self.is_draining:
            raise Refusal("the server is shutting down", status=503, code="shutting_down")
        data = await self._body(request)
        mail: Mailbox[Item] = Mailbox()
        header = request.headers.get(HEADER)

        def put(index: int, item: Token | GuardEvent | Ticket) -> None:
            mail.put((index, item))

        def begin() -> Live:
            asked = read(read_object(data))
            return self._service.begin(
                asked,
                header,
                shape.prefix,
                on_token=put if asked.stream else None,
                on_end=put,
                on_guard=put if asked.stream and asked.is_live else None,
            )

        live = await run_in_threadpool(begin)
        answer = Answer(self._service, live, mail, shape)
        if not live.asked.stream:
            try:
                whole = await _unless_gone(request, answer.whole())
            finally:
                self._close(live)
            return JSONResponse(whole, headers=answer.headers)
        try:
            first = await _unless_gone(request, answer.first())
        except BaseException:
            self._close(live)
            raise
        events = answer.events(first)
        return EventStream(events, shape.media_type, answer.headers, lambda: self._close(live))

    def _close(self, live: Live) -> None:
        """Count the reply, and free what it holds if its client has left."""
        self._service.forget(live)
        for index, ticket in enumerate(live.tickets):
            self._metrics.ended(ticket, n_guard_steps(live, index))

    async def _body(self, request: Request) -> bytes:
        """Return a request's body.

        Raises:
            Refusal: it is too large, or does not come.
        """
        config = self._service.config
        data = bytearray()
        n_bytes = 0
        try:
            with anyio.fail_after(config.read_timeout):
                async for part in request.stream():
                    n_bytes += len(part)
                    if n_bytes <= config.max_body:
                        data += part
                    elif n_bytes > _DISCARDED:
                        break
        except TimeoutError:
            raise Refusal(
                f"the body did not come within {config.read_timeout:g} s",
                status=408,
                code="timeout",
            ) from None
        if n_bytes > config.max_body:
            raise Refusal(
                f"the body has more than {config.max_body} bytes, the most that is read",
                status=413,
                code="body_too_large",
            )
        return bytes(data)

    async def _object(self, request: Request) -> dict[str, Any]:
        data = await self._body(request)
        return read_object(data) if data.strip() else {}

    # --- models and moods ---

    async def _models(self, request: Request) -> Response:
        names = self._service.model_names()
        return JSONResponse({"object": "list", "data": [self._model(name) for name in names]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._service.model_names():
            raise Refusal(
                f"no model {name[:80]!r} here", status=404, code="model_not_found", param="model"
            )
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        service = self._service
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "pyemo",
            "meta": {"n_ctx": service.engine.n_ctx_seq, "n_vocab": service.model.n_vocab},
        }

    async def _tags(self, request: Request) -> Response:
        service = self._service
        status = await run_in_threadpool(service.model.path.stat)
        facts = {
            "modified": status.st_mtime,
            "size": status.st_size,
            "digest": service.model.file_sha256,
            "family": service.model.architecture,
        }
        return JSONResponse({"models": [tag(name, facts) for name in service.model_names()]})

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": pyemo.__version__})

    async def _steering(self, request: Request) -> Response:
        service = self._service
        described = await run_in_threadpool(service.describe_vectors)
        return JSONResponse(
            {
                "model": service.model.name,
                "default": service.default.text,
                "vectors": described,
                "presets": {
                    name: preset.steering for name, preset in service.config.presets.items()
                },
            }
        )

    async def _steer(self, request: Request) -> Response:
        body = await self._object(request)
        if "steering" not in body:
            raise Refusal("steering is missing", param="steering")
        completion = request.path_params["completion"]
        live, index = await run_in_threadpool(self._service.steer, completion, body["steering"])
        applied = live.applied.describe(self._service.model.n_layer)
        return JSONResponse(
            {
                "id": live.id,
                "applied": applied["steering"],
                "from_token": index,
                "terms": applied["terms"],
                "dose": applied["dose"],
                "notes": applied["notes"],
            }
        )

    # --- management, in the shape of ik_llama.cpp ---

    async def _vectors(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._vector_rows))

    def _vector_rows(self) -> list[dict[str, Any]]:
        applied = {term.term.vector.name: term.term for term in self._service.default.terms}
        rows = []
        for offer in self._service.shelf.offers():
            if offer.use != "writing":
                continue
            term = applied.get(offer.name)
            described = self._service.desk.describe(offer)
            layers = described.get("layers")
            if term is not None and term.layers is not None:
                layers = [term.layers.start, term.layers.stop]
            rows.append(
                {
                    "id": offer.name,
                    "name": offer.name,
                    "scale": 0.0 if term is None else term.strength,
                    "layer_start": layers and layers[0],
                    "layer_end": layers and layers[1] - 1,
                    "applied": term is not None,
                }
            )
        return rows

    async def _apply(self, request: Request) -> Response:
        terms = parsed(_terms_in(await self._body(request)), "body").terms
        applied = await run_in_threadpool(self._service.set_default, terms)
        return JSONResponse(
            {"success": True, "applied": applied.text},
            headers={"X-Pyemo-Applied": header_text(applied.text or "unsteered")},
        )

    async def _load(self, request: Request) -> Response:
        name = _name_in(await self._object(request))
        try:
            vector = await run_in_threadpool(self._service.shelf.restore, name)
        except PyemoError as error:
            raise refusal_of(error, "name") from None
        return JSONResponse({"id": vector.name, "name": vector.name})

    async def _unload(self, request: Request) -> Response:
        name = _name_in(await self._object(request))
        try:
            await run_in_threadpool(self._service.shelf.unload, name)
        except PyemoError as error:
            raise refusal_of(error, "name") from None
        return JSONResponse({"name": name})

    async def _reload(self, request: Request) -> Response:
        await self._body(request)
        return JSONResponse({"names": await run_in_threadpool(self._service.reload)})

    # --- the rest ---

    async def _health(self, request: Request) -> Response:
        if self.is_draining:
            return JSONResponse({"status": "shutting down"}, status_code=503)
        if self._service.is_broken:
            return JSONResponse({"status": "the engine has stopped"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def _metrics_page(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type=CONTENT_TYPE_LATEST)

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_page_text(), headers={"Content-Security-Policy": PAGE_POLICY})


@functools.lru_cache(maxsize=1)
def _page_text() -> str:
    return (files("pyemo.server") / "page.html").read_text(encoding="utf-8")


async def _unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Return what ``work`` gives.

    Raises:
        ClientDisconnect: the client left before.
    """
    found = await unless_gone(request.receive, work)
    if found is None:
        raise ClientDisconnect
    return found


def _name_in(body: dict[str, Any]) -> str:
    name = body.get("name", body.get("id"))
    if not isinstance(name, str) or not name:
        raise Refusal("name is missing; send the name of a vector, never a path", param="name")
    return name


def _terms_in(data: bytes) -> list[dict[str, Any]]:
    """Return the terms of a list such as ``[{"id": "anger", "scale": 0.02}]``, zeros left out.

    Layers are ik_llama.cpp's: ``layer_start`` and ``layer_end``, both of them steered.
    """
    items = read_json(data)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Refusal('send a list such as [{"id": "anger", "scale": 0.02}]; [] is unsteered')
    terms = []
    for item in items:
        known = {key: value for key, value in item.items() if not key.startswith("layer_")}
        name = known.pop("id", None) or known.pop("name", None)
        term = {"name": name, **known}
        if "layer_start" in item or "layer_end" in item:
            first, last = item.get("layer_start", 0), item.get("layer_end", 1 << 16)
            if type(first) is not int or type(last) is not int:
                raise Refusal("layer_start and layer_end are whole numbers", param="layer_start")
            term["layers"] = [first, last + 1]
        if term.get("scale", term.get("strength")) != 0:
            terms.append(term)
    return terms
