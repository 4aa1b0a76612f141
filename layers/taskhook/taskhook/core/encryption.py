"""Encryption of what is secret in the tables, under keys derived from the deployment's own material.

Encrypt, then authenticate: the text is XORed with HMAC-SHA256 in counter mode over a fresh nonce, and an HMAC
over context, nonce and ciphertext proves that it was made with the key, for this very place. The standard
library has no AES, and the layer no library that has; HMAC-SHA256 as a pseudorandom function is all that this
construction rests on.
"""

import base64
import binascii
import hmac
import secrets

from taskhook.core.errors import DecryptionError

_VERSION = "v1:"
_NONCE, _TAG = 16, 32


def derived_key(material: str, use: str) -> bytes:
    """Derive the key for one use, 32 bytes, from the deployment's random material.

    Each use has a key of its own.
    """
    return hmac.digest(material.encode(), f"taskhook {use}".encode(), "sha256")


def encrypt(text: str, *, material: str, context: str) -> str:
    """Encrypt a text for one context, such as whose it is: elsewhere it cannot be decrypted.

    Twice gives two results.
    """
    nonce, plain = secrets.token_bytes(_NONCE), text.encode()
    encrypted = nonce + _xor(plain, derived_key(material, "encryption"), nonce)
    return _VERSION + base64.b64encode(encrypted + _tag(encrypted, material, context)).decode()


def decrypt(stored: str, *, material: str, context: str) -> str:
    """Give the text again. Raises DecryptionError, which shows nothing of it."""
    try:
        content = base64.b64decode(stored.removeprefix(_VERSION), validate=True)
    except (binascii.Error, ValueError):
        content = b""
    encrypted, tag = content[:-_TAG], content[-_TAG:]
    if not stored.startswith(_VERSION) or len(encrypted) < _NONCE:
        raise DecryptionError("it is not encrypted")
    if not hmac.compare_digest(tag, _tag(encrypted, material, context)):
        raise DecryptionError("it was encrypted under another key or for another context, or was changed")
    return _xor(encrypted[_NONCE:], derived_key(material, "encryption"), encrypted[:_NONCE]).decode()


def _tag(encrypted: bytes, material: str, context: str) -> bytes:
    """Authenticate version, context and content; the context's length keeps the three apart."""
    place = context.encode()
    signed = b"%s%d:%s%s" % (_VERSION.encode(), len(place), place, encrypted)
    return hmac.digest(derived_key(material, "authentication"), signed, "sha256")


def _xor(content: bytes, key: bytes, nonce: bytes) -> bytes:
    """XOR with the key stream: block number n is the HMAC of nonce and n."""
    blocks = range(-(-len(content) // 32))
    stream = b"".join(hmac.digest(key, nonce + block.to_bytes(8), "sha256") for block in blocks)
    return bytes(one ^ other for one, other in zip(content, stream, strict=False))
