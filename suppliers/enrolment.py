"""How a machine becomes a node: a token from its owner's page, and a key made on the machine."""

from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F

from agent.protocol import VERSION, EnrolReply, EnrolRequest, enrol_bytes
from agent.protocol import fingerprint as fingerprint_of
from marketplace.core.errors import (
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    InvalidTransition,
    Unauthenticated,
)
from marketplace.models import digest, new_secret
from suppliers.inventory import sandbox_refusal, write_inventory
from suppliers.models import EnrolmentToken, Node, Site
from suppliers.services import checked_name, quarantine, server_name

_MOST_NODES: Final = 1000
_LONGEST_LIFE: Final = timedelta(days=30)
_KEY_BYTES: Final = 32


def make_token(
    site: Site, *, nodes: int, by: User, now: datetime, lifetime: timedelta | None = None
) -> tuple[EnrolmentToken, str]:
    """A token for `nodes` new nodes of `site`, and its secret, which is kept nowhere.

    It lives for `lifetime`, by default `enrolment_token_s` of the policy. Raises Invalid.
    """
    if not 1 <= nodes <= _MOST_NODES:
        raise Invalid(f"a token is for 1 to {_MOST_NODES} nodes, not {nodes}", field="nodes")
    life = timedelta(seconds=settings.POLICY.enrolment_token_s) if lifetime is None else lifetime
    if not timedelta(0) < life <= _LONGEST_LIFE:
        raise Invalid(f"a token lives for at most {_LONGEST_LIFE.days} days", field="lifetime")
    return _token(EnrolmentToken(site=site, nodes_left=nodes), life=life, by=by, now=now)


def make_rekey_token(node: Node, *, by: User, now: datetime) -> tuple[EnrolmentToken, str]:
    """A token that gives `node` a new key: the old one was lost, or somebody else has it."""
    if node.state == "retired":
        raise InvalidTransition("a retired node has no key; enrol the machine anew")
    token = EnrolmentToken(site=node.site, node=node, nodes_left=1)
    life = timedelta(seconds=settings.POLICY.enrolment_token_s)
    return _token(token, life=life, by=by, now=now)


@transaction.atomic
def enrol(request: EnrolRequest, *, now: datetime) -> EnrolReply:
    """Lets a new node in, `pending` until its owner and its proof vouch for it.

    Raises Unauthenticated (no such token, or the key isn't the caller's), Expired (token out of
    time or used up), Conflict (key, device or name known already), Forbidden (no sandbox) and
    Invalid. Whatever fails, the token is not used up by it.
    """
    _check(request)
    token = _spend(request.token, now=now)
    name = checked_name(request.name, of="node")
    try:
        if token.node is None:
            node = _create(token.site, name, request, now=now)
        else:
            node = _rekey(token.node, request, now=now)
    except IntegrityError:
        raise Conflict("another node with this key or name enrolled just now; look again") from None
    write_inventory(node, request.inventory)
    return EnrolReply(
        node=node.pk,
        fingerprint=node.fingerprint,
        server=server_name(),
        agents_url=settings.AGENTS_URL,
        market_key=market_public_key(),
    )


def market_public_key() -> bytes:
    """The key that signs receipts, as nodes keep it from their enrolment on."""
    signing = Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY)
    return signing.public_key().public_bytes_raw()


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` is by `public_key` (Ed25519)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _token(
    token: EnrolmentToken, *, life: timedelta, by: User, now: datetime
) -> tuple[EnrolmentToken, str]:
    secret, kept = new_secret("e")
    token.digest, token.expires_at = kept, now + life
    token.created_by, token.created_at = by.get_username(), now
    token.save()
    return token, secret


def _check(request: EnrolRequest) -> None:
    """Everything that needs no look into the database."""
    if request.version != VERSION:
        raise Invalid(
            f"this agent speaks version {request.version} of the protocol, the market "
            f"{VERSION}; install the agent that goes with this market",
            field="version",
        )
    if len(request.public_key) != _KEY_BYTES:
        raise Invalid(f"an Ed25519 key has {_KEY_BYTES} bytes", field="public_key")
    if not is_signed(
        request.public_key, request.proof, enrol_bytes(request.token, request.public_key)
    ):
        raise Unauthenticated("the request isn't signed by the key that it enrols")
    refusal = sandbox_refusal(request.inventory.sandbox)
    if refusal:
        raise Forbidden(refusal)


def _spend(secret: str, *, now: datetime) -> EnrolmentToken:
    """Takes one node off the token; the conditional UPDATE is the lock between racing agents."""
    tokens = EnrolmentToken.objects.filter(digest=digest(secret.strip()))
    spent = tokens.filter(nodes_left__gt=0, expires_at__gt=now).update(
        nodes_left=F("nodes_left") - 1
    )
    token = tokens.select_related("site", "node").first()
    if token is None:
        raise Unauthenticated(
            "there is no such enrolment token; copy the whole of it from the site's page"
        )
    if not spent and token.expires_at <= now:
        raise Expired("this enrolment token has expired; make a new one on the site's page")
    if not spent:
        raise Expired("this enrolment token is used up; make a new one on the site's page")
    return token


def _create(site: Site, name: str, request: EnrolRequest, *, now: datetime) -> Node:
    _refuse_known_key(request.public_key)
    if site.nodes.filter(name=name).exclude(state="retired").exists():
        raise Conflict(
            f"site {site.name!r} has a node named {name!r} already; enrol with another --name"
        )
    with transaction.atomic():
        return Node.objects.create(
            site=site,
            name=name,
            public_key=request.public_key,
            fingerprint=fingerprint_of(request.public_key),
            state=Node.MACHINE.initial,
            state_since=now,
        )


def _rekey(node: Node, request: EnrolRequest, *, now: datetime) -> Node:
    """A new key starts from the beginning: its socket, its confirmation and its proof are gone."""
    _refuse_known_key(request.public_key)
    if node.state == "retired":
        raise InvalidTransition("a retired node takes no new key; enrol the machine anew")
    quarantine(node, reason="it has a new key; confirm its fingerprint", now=now)
    # Nor may it go on with a proof that was asked of what the old one listed.
    node.benchmarks.filter(finished_at=None).update(finished_at=now, verdict="it has a new key")
    node.public_key = request.public_key
    node.fingerprint = fingerprint_of(request.public_key)
    node.confirmed_at = node.session = None
    node.swaps = []
    with transaction.atomic():
        node.save(update_fields=["public_key", "fingerprint", "confirmed_at", "session", "swaps"])
    return node


def _refuse_known_key(public_key: bytes) -> None:
    if Node.objects.filter(public_key=public_key).exists():
        raise Conflict(
            "a node with this key is enrolled already: to run it, use `python -m agent run`; "
            "to enrol another one, give it a state folder of its own with --state"
        )
