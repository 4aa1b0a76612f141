"""What a stolen table gives away, and what a changed one can do: nothing."""

import base64
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskhook.core import signature
from taskhook.core.encryption import decrypt, derived_key, encrypt
from taskhook.core.errors import DecryptionError
from tests.rows import each_row


@settings(max_examples=30)
@given(st.text(max_size=100), st.text(max_size=20))
def test_what_was_encrypted_is_read_again_in_its_place_alone(text: str, context: str) -> None:
    """With the same material and for the same context; nowhere else."""
    stored = encrypt(text, material="m", context=context)
    assert decrypt(stored, material="m", context=context) == text
    for material, other in (("n", context), ("m", context + "x"), ("m", "x" + context)):
        with pytest.raises(DecryptionError):
            decrypt(stored, material=material, context=other)


def test_equal_texts_look_different_and_show_nothing() -> None:
    """A fresh nonce each time; nothing of the text is in what is stored."""
    secret = signature.new_secret()
    one, other = (encrypt(secret, material="m", context="alice") for _ in range(2))
    assert one != other
    assert (
        base64.b64decode(one.removeprefix("v1:"))[16:-32]
        != base64.b64decode(other.removeprefix("v1:"))[16:-32]
    )
    assert secret.removeprefix("whsec_") not in one


def test_every_changed_bit_is_noticed() -> None:
    """In nonce, ciphertext and tag alike."""
    content = base64.b64decode(encrypt("whsec_x", material="m", context="alice").removeprefix("v1:"))
    for bit in range(len(content) * 8):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DecryptionError):
            decrypt("v1:" + base64.b64encode(changed).decode(), material="m", context="alice")


@each_row(
    "stored", ["", "v1:", "v1:AAAA", "whsec_AAAA", "v2:" + "A" * 96, "v1:" + "A" * 96, "v1:ü", "v1:%%%"]
)
def test_what_is_not_encrypted_is_told(stored: str) -> None:
    """A plain secret that was written into the table never signs."""
    with pytest.raises(DecryptionError):
        decrypt(stored, material="m", context="alice")


def test_the_construction_is_counter_mode_under_a_derived_key_then_a_tag() -> None:
    """Written out by hand, so that the next version reads what is stored today; 70 bytes are three blocks."""
    text = "x" * 70
    content = base64.b64decode(encrypt(text, material="m", context="al").removeprefix("v1:"))
    nonce, encrypted, tag = content[:16], content[16:-32], content[-32:]
    key = derived_key("m", "encryption")
    stream = b"".join(hmac.digest(key, nonce + bytes(7) + bytes([block]), "sha256") for block in range(3))
    assert bytes(one ^ other for one, other in zip(encrypted, stream, strict=False)) == text.encode()
    assert tag == hmac.digest(derived_key("m", "authentication"), b"v1:2:al" + nonce + encrypted, "sha256")
