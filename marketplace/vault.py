"""Secrets at rest: sealed with the market's own keys, opened only to be handed to a job.

Fernet (AES-128-CBC and HMAC-SHA-256). The first of VAULT_KEYS seals; every one of them opens, so a
key is changed by putting a new one before the old, and `manage.py rotate_secrets` then seals
everything anew.
"""

import functools

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

from marketplace.core.errors import Unavailable


def seal(text: str) -> bytes:
    """What may lie in the database."""
    return _keys(tuple(settings.VAULT_KEYS)).encrypt(text.encode())


def unseal(sealed: bytes) -> str:
    """What was sealed; raises Unavailable if none of our keys opens it."""
    try:
        return _keys(tuple(settings.VAULT_KEYS)).decrypt(sealed).decode()
    except InvalidToken:
        raise Unavailable(
            "a secret was sealed with a key that the market no longer has; set it anew"
        ) from None


def reseal(sealed: bytes) -> bytes:
    """The same under the first key; raises Unavailable."""
    try:
        return _keys(tuple(settings.VAULT_KEYS)).rotate(sealed)
    except InvalidToken:
        raise Unavailable("a secret is sealed with a key that is not among VAULT_KEYS") from None


@functools.lru_cache(maxsize=4)
def _keys(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])
