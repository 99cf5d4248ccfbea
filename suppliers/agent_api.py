"""What agents ask over HTTPS, `/agent/v1/…`: enrolment, proofs, and the bytes of assignments.

Bodies are `agent.protocol` structs, errors its `Problem`. But for enrolment every call shows the
bearer that the node's socket handed out, and speaks for that node alone.
"""

import functools
import logging
from collections.abc import Callable
from typing import Final, TypeVar
from uuid import UUID

import django.db
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from agent import protocol
from marketplace.core.errors import Conflict, Forbidden, Invalid, MarketError, Missing, TooLarge
from marketplace.http import status_of
from scheduler import assignments, tasks, uploads
from suppliers import enrolment, sessions, verification
from suppliers.models import Node

log = logging.getLogger(__name__)

MAX_BODY: Final = 4 * 2**20
_Struct = TypeVar("_Struct", bound=protocol.Wire)
_View = Callable[..., HttpResponse]


class ProofFailed(Conflict):
    """The node's hardware isn't what it says; the message tells which row gave it away."""

    code = "proof_failed"


def _endpoint(method: str) -> Callable[[_View], _View]:
    """A view for one method whose every no is a Problem."""

    def decorate(handler: _View) -> _View:
        @csrf_exempt
        @functools.wraps(handler)
        def view(request: HttpRequest, **path: object) -> HttpResponse:
            if request.method != method:
                return _problem("method", f"this address takes {method} only", 405)
            try:
                return handler(request, **path)
            except MarketError as error:
                return _problem(error.code, str(error), status_of(error))
            except django.db.OperationalError as error:
                log.warning("%s waits for the database: %s", request.path, error)
                return _problem("unavailable", "the market's database is away; try again", 503)

        return view

    return decorate


@_endpoint("POST")
def enrol(request: HttpRequest) -> HttpResponse:
    """A machine becomes a node, or a node gets a new key."""
    reply = enrolment.enrol(_body(request, protocol.EnrolRequest), now=timezone.now())
    return _answer(reply, status=201)


@_endpoint("GET")
def proof(request: HttpRequest) -> HttpResponse:
    """The proof that this node owes now; 404 if none is due."""
    node = _node(request)
    try:
        return _answer(verification.ask_proof(node, now=timezone.now()))
    except Missing as error:
        none = _problem(error.code, str(error), status_of(error))
        # All is well with a node that owes nothing, and each asks every ten minutes: Django's
        # word for a response that it need not warn of.
        none._has_been_logged = True  # type: ignore[attr-defined]
        return none


@_endpoint("POST")
def commit_proof(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Takes the roots, and says which rows to open."""
    node = _node(request)
    commit = _body(request, protocol.ProofCommit)
    return _answer(verification.commit_proof(node, pk, commit, now=timezone.now()))


@_endpoint("POST")
def open_proof(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Judges the opened rows: 204, or 409 `proof_failed` with what is wrong with them."""
    node = _node(request)
    opening = _body(request, protocol.ProofOpening)
    flaw = verification.open_proof(node, pk, opening, now=timezone.now())
    if flaw:
        raise ProofFailed(f"the proof of hardware failed: {flaw}")
    tasks.ring(tasks.clear_market)
    return HttpResponse(status=204)


@_endpoint("GET")
def spec(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The bytes whose hash stands in `desired`."""
    return HttpResponse(assignments.spec(_trusted(request), pk), content_type="application/json")


@_endpoint("GET")
def inputs(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Presigned GETs for all that the assignment reads."""
    urls = assignments.input_urls(_trusted(request), pk)
    return _answer(protocol.InputUrls(urls=urls))


@_endpoint("GET")
def layers(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Where the layers of its image are."""
    return _answer(assignments.layers(_trusted(request), pk))


@_endpoint("GET")
def secrets(request: HttpRequest, pk: UUID) -> HttpResponse:
    """The values of the job's secrets, for its start."""
    values = assignments.secret_values(_trusted(request), pk, now=timezone.now())
    answer = _answer(protocol.SecretValues(values=values))
    answer["Cache-Control"] = "no-store"
    return answer


@_endpoint("POST")
def grant_uploads(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Presigned PUTs for what the job has written."""
    node = _trusted(request)
    wanted = _body(request, protocol.UploadRequest)
    return _answer(uploads.grant(node, pk, wanted, now=timezone.now()))


@_endpoint("POST")
def commit_upload(request: HttpRequest, pk: UUID) -> HttpResponse:
    """Makes an uploaded folder the job's."""
    node = _trusted(request)
    sent = _body(request, protocol.CommitRequest)
    return _answer(uploads.commit(node, pk, sent, now=timezone.now()))


def _node(request: HttpRequest) -> Node:
    """The node that calls; raises Unauthenticated."""
    kind, _, bearer = request.headers.get("Authorization", "").partition(" ")
    return sessions.node_of_bearer(bearer.strip() if kind.lower() == "bearer" else "")


def _trusted(request: HttpRequest) -> Node:
    """The node that calls, if it may see and write what belongs to buyers."""
    node = _node(request)
    if node.state not in ("ready", "draining"):
        raise Forbidden(f"a {node.state} node has nothing to do with jobs; see its page")
    return node


def _body(request: HttpRequest, kind: type[_Struct]) -> _Struct:
    """The request's body, decoded; raises TooLarge, Invalid."""
    raw = request.read(MAX_BODY + 1)
    if len(raw) > MAX_BODY:
        raise TooLarge(f"a body is at most {MAX_BODY >> 20} MiB; send it in several calls")
    try:
        return protocol.decode(raw, kind)
    except protocol.Malformed as error:
        raise Invalid(f"the body is not a {kind.__name__}: {error}") from None


def _answer(reply: protocol.Wire, *, status: int = 200) -> HttpResponse:
    body = protocol.encode(reply)
    return HttpResponse(body, content_type="application/json", status=status)


def _problem(code: str, message: str, status: int) -> HttpResponse:
    return _answer(protocol.Problem(code=code, message=message[:2000]), status=status)
