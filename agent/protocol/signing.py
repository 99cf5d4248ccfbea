"""What goes under each signature and hash; its own prefix keeps one from passing as another."""

import hashlib
from uuid import UUID

from agent.protocol.https import File
from agent.protocol.wire import encode


def enrol_bytes(token: str, public_key: bytes) -> bytes:
    """What an enrolling key signs: this token, for this key."""
    return b"gridloom enrol 1\0" + hashlib.sha256(token.encode()).digest() + public_key


def hello_bytes(node: UUID, nonce: str, boot_id: str, server: str) -> bytes:
    """What a node signs to open a socket: itself, this challenge, this boot, this market."""
    return b"gridloom hello 1\0" + "\0".join((str(node), nonce, boot_id, server)).encode()


def claim_bytes(node: UUID, claim: bytes) -> bytes:
    """What a node signs under a usage claim."""
    return b"gridloom usage 1\0" + node.bytes + claim


def receipt_bytes(node: UUID, body: bytes) -> bytes:
    """What the market signs under a receipt."""
    return b"gridloom receipt 1\0" + node.bytes + body


def fingerprint(public_key: bytes) -> str:
    """A key as a person compares it: eight groups of four hex digits of its SHA-256."""
    digest = hashlib.sha256(public_key).hexdigest()[:32]
    return ":".join(digest[i : i + 4] for i in range(0, 32, 4))


def manifest_sha256(files: list[File]) -> str:
    """The hash of a manifest: its files sorted by path, encoded as JSON."""
    return hashlib.sha256(encode(sorted(files, key=lambda file: file.path))).hexdigest()


def sha256_hex(data: bytes) -> str:
    """SHA-256 as all our messages write it."""
    return hashlib.sha256(data).hexdigest()
