"""How a machine becomes a node: a token and a new key, for an id that its owner then confirms."""

import httpx

from agent import protocol
from agent.api import problem_of
from agent.config import (
    Config,
    Network,
    State,
    StateError,
    checked_url,
    is_loopback,
    make_key,
    save,
)
from agent.protocol import EnrolReply, EnrolRequest, Inventory


class NotEnrolled(RuntimeError):
    """The market does not take this machine, or can't be reached; says why and what to do."""


def enrol(
    state: State,
    *,
    market: str,
    token: str,
    name: str,
    inventory: Inventory,
    network: Network | None = None,
) -> tuple[Config, str]:
    """Enrols; returns what was written to config.json, and the key's fingerprint.

    The key is made at the first attempt and stays for the next ones. Raises NotEnrolled,
    StateError.
    """
    if state.config.exists():
        raise StateError(
            f"{state.root} holds a node already: run it with `python -m agent run --state "
            f"{state.root}`, or enrol another one with a --state of its own"
        )
    request = _request(state, token, name, inventory)
    reply = _post(checked_url(market), request)
    fingerprint = protocol.fingerprint(request.public_key)
    if reply.fingerprint != fingerprint:
        raise NotEnrolled("the market names another key than the one that was sent: don't go on")
    config = Config(
        market=checked_url(market),
        node=reply.node,
        name=name,
        server=reply.server,
        agents_url=checked_url(reply.agents_url),
        market_key=reply.market_key,
        network=network or Network(),
    )
    save(state, config)
    return config, fingerprint


def fingerprint_of(state: State) -> str:
    """Of the key in this folder."""
    return protocol.fingerprint(make_key(state).public_key().public_bytes_raw())


def _request(state: State, token: str, name: str, inventory: Inventory) -> EnrolRequest:
    key = make_key(state)
    public = key.public_key().public_bytes_raw()
    return EnrolRequest(
        version=protocol.VERSION,
        token=token,
        name=name,
        public_key=public,
        proof=key.sign(protocol.enrol_bytes(token, public)),
        inventory=inventory,
    )


def _post(market: str, request: EnrolRequest) -> EnrolReply:
    try:
        answer = httpx.post(
            f"{market}/agent/v1/enrol",
            content=protocol.encode(request),
            headers={"content-type": "application/json"},
            timeout=30,
            trust_env=not is_loopback(market),
        )
    except httpx.TransportError as error:
        raise NotEnrolled(
            f"{market} does not answer ({error}): check the address, and this machine's network"
        ) from None
    if answer.status_code == 404 or (answer.is_success and answer.status_code != 201):
        raise NotEnrolled(
            f"{market} is no address for agents: copy the whole command from your site's page"
        )
    if not answer.is_success:
        raise NotEnrolled(f"the market refuses: {problem_of(answer).message}")
    try:
        return protocol.decode(answer.content, EnrolReply)
    except protocol.Malformed as error:
        raise NotEnrolled(f"{market} answers what is not of this protocol: {error}") from None
