"""What the node says it is owed: signed claims, on the disk until the market's receipt is.

A claim holds totals, so the newest one of an assignment says all that the ones before it said:
`spool/<assignment>.json` is the claim not yet answered for, `receipts/<assignment>.json` the last
answer, the node's proof of what it is owed. Claim numbers rise over any restart.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent import protocol
from agent.config import write_private
from agent.protocol import Claim, Receipt, ReceiptBody, Usage

_Read = TypeVar("_Read", Usage, Receipt)


class BadReceipt(ValueError):
    """A receipt that the market didn't sign, or that is about no claim of ours."""


@dataclass
class Meter:
    """The energy of one assignment, integrated over its running time."""

    running_ms: int = 0
    """Up to where it has been integrated."""
    millijoules: float = 0.0
    measured: bool = True
    """False as soon as any of it was an estimate."""

    def add(self, running_ms: int, watts: float, *, measured: bool) -> None:
        """It has run until `running_ms`, drawing so much since the last time."""
        if running_ms > self.running_ms:
            self.millijoules += watts * (running_ms - self.running_ms)  # W · ms = mJ
            self.running_ms = running_ms
            self.measured = self.measured and measured


class Spool:
    """The claims and receipts of one node."""

    def __init__(self, root: Path, node: UUID, key: Ed25519PrivateKey, market_key: bytes) -> None:
        """`root`: the agent's state folder."""
        self._claims, self._receipts = root / "spool", root / "receipts"
        for folder in (self._claims, self._receipts):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._node, self._key = node, key
        self._market = Ed25519PublicKey.from_public_bytes(market_key)
        self._answered: dict[UUID, asyncio.Event] = {}

    def last(self, assignment: UUID) -> Claim | None:
        """The last claim made, whether or not it has been answered."""
        usage = _read(self._claims / f"{assignment}.json", Usage)
        return protocol.decode(usage.claim, Claim) if usage else None

    def next_number(self, assignment: UUID) -> int:
        """For the next claim: above every one that was ever signed."""
        claim = self.last(assignment)
        receipt = self.receipt(assignment)
        return 1 + max(claim.n if claim else 0, receipt.n if receipt else 0)

    def add(self, claim: Claim) -> None:
        """Signs a claim; it is on the disk before this returns."""
        body = protocol.encode(claim)
        usage = Usage(claim=body, signature=self._key.sign(protocol.claim_bytes(self._node, body)))
        write_private(self._claims / f"{claim.assignment}.json", protocol.encode(usage))
        self._event(claim.assignment).clear()

    def waiting(self) -> dict[UUID, Usage]:
        """Claims without a receipt, by assignment."""
        found = {}
        for path in sorted(self._claims.glob("*.json")):
            usage = _read(path, Usage)
            if usage is not None:
                found[UUID(path.stem)] = usage
        return found

    def take(self, receipt: Receipt) -> ReceiptBody:
        """Checks and keeps the market's answer; the claim it answers is done with. An answer to an
        older claim than the one waiting is kept too. Raises BadReceipt."""
        try:
            self._market.verify(receipt.signature, protocol.receipt_bytes(self._node, receipt.body))
            body = protocol.decode(receipt.body, ReceiptBody)
        except (InvalidSignature, protocol.Malformed) as error:
            raise BadReceipt(f"a receipt is not the market's: {error}") from None
        path = self._claims / f"{body.assignment}.json"
        usage = _read(path, Usage)
        known = self.receipt(body.assignment)
        if usage is None and known is None:
            raise BadReceipt(f"a receipt for {body.assignment}, of which nothing was claimed")
        if known is None or body.n >= known.n:
            write_private(self._receipts / f"{body.assignment}.json", protocol.encode(receipt))
        if usage is not None and protocol.sha256_hex(usage.claim) == body.claim:
            path.unlink()
            self._event(body.assignment).set()
        return body

    def receipt(self, assignment: UUID) -> ReceiptBody | None:
        """The market's last word on an assignment."""
        receipt = _read(self._receipts / f"{assignment}.json", Receipt)
        return protocol.decode(receipt.body, ReceiptBody) if receipt else None

    async def answered(self, assignment: UUID) -> None:
        """Waits until no claim of this assignment is without a receipt."""
        if (self._claims / f"{assignment}.json").exists():
            await self._event(assignment).wait()

    def _event(self, assignment: UUID) -> asyncio.Event:
        return self._answered.setdefault(assignment, asyncio.Event())


def _read(path: Path, kind: type[_Read]) -> _Read | None:
    """A struct from a file of ours; None if it isn't there or the disk has lost it."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
