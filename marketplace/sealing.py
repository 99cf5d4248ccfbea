"""Small secrets in the database: sealed with a key that the database doesn't hold.

The key is derived from SECRET_KEY, so a copy of the database alone opens nothing. A new SECRET_KEY
makes what was sealed unreadable: what is kept this way must be short-lived or asked for anew.
"""

import base64
import functools

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from marketplace.core.errors import Unavailable


def seal(text: str) -> bytes:
    """The text, so that only this site can read it again."""
    return _box(settings.SECRET_KEY).encrypt(text.encode())


def unseal(sealed: bytes | memoryview) -> str:
    """What was sealed; raises Unavailable if it was sealed under another key."""
    try:
        return _box(settings.SECRET_KEY).decrypt(bytes(sealed)).decode()
    except InvalidToken:
        raise Unavailable(
            "a kept secret can't be read any more, as the site's key has changed; give it again"
        ) from None


@functools.cache
def _box(secret: str) -> Fernet:
    derived = HKDF(hashes.SHA256(), length=32, salt=None, info=b"gridloom sealing").derive(
        secret.encode()
    )
    return Fernet(base64.urlsafe_b64encode(derived))
