import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from taskhook.core import signature
from tests.rows import each_row

# The specification's own vector.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

secrets = st.binary(min_size=24, max_size=64).map(lambda key: "whsec_" + base64.b64encode(key).decode())
message_ids = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="."), min_size=1, max_size=64
)
bodies = st.text().map(str.encode)  # the reference reads a body as UTF-8
# Within the reference's tolerance of 300 s, at any fraction of a second and in any zone.
moments = st.builds(
    lambda seconds, minutes: (datetime.now(UTC) + timedelta(seconds=seconds)).astimezone(
        timezone(timedelta(minutes=minutes))
    ),
    st.floats(-200, 200),
    st.integers(-14 * 60, 14 * 60),
)


def verifies(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Ask the reference library; its answer to an empty body is about JSON, so it is told not to parse."""
    try:
        Webhook(secret).verify(body, headers, json_parse=False)
    except WebhookVerificationError:
        return False
    return True


def test_specification_vector() -> None:
    """The specification's message gets the specification's signature."""
    assert signature.sign(SECRET, MESSAGE_ID, TIMESTAMP, BODY) == SIGNATURE


def test_headers_of_the_specification_vector() -> None:
    """The three headers are those of the specification, the time in whole Unix seconds."""
    attempted_at = datetime.fromtimestamp(TIMESTAMP, UTC) + timedelta(milliseconds=999)
    assert signature.headers([SECRET], MESSAGE_ID, attempted_at, BODY) == {
        "webhook-id": MESSAGE_ID,
        "webhook-timestamp": str(TIMESTAMP),
        "webhook-signature": SIGNATURE,
    }


@given(secret=secrets, message_id=message_ids, at=moments, body=bodies)
def test_reference_verifies_what_we_sign(secret: str, message_id: str, at: datetime, body: bytes) -> None:
    """Whatever the body, id, secret, time and time zone, the reference accepts our headers."""
    assert verifies(secret, signature.headers([secret], message_id, at, body), body)


@given(secret=secrets, message_id=message_ids, timestamp=st.integers(0, 2**33), body=st.text())
def test_we_sign_what_the_reference_signs(secret: str, message_id: str, timestamp: int, body: str) -> None:
    """Our signature is the reference's, character by character."""
    reference = Webhook(secret).sign(message_id, datetime.fromtimestamp(timestamp, UTC), body)
    assert signature.sign(secret, message_id, timestamp, body.encode()) == reference


@given(
    pair=st.lists(secrets, min_size=3, max_size=3, unique=True),
    message_id=message_ids,
    at=moments,
    body=bodies,
)
def test_during_rotation_either_secret_verifies(
    pair: list[str], message_id: str, at: datetime, body: bytes
) -> None:
    """With two valid secrets a receiver that holds either one accepts; a third secret does not."""
    new, old, stranger = pair
    headers = signature.headers([new, old], message_id, at, body)
    assert [verifies(secret, headers, body) for secret in (new, old, stranger)] == [True, True, False]


@given(secret=secrets, message_id=message_ids, at=moments, body=bodies, position=st.integers(min_value=0))
def test_tampered_body_fails(secret: str, message_id: str, at: datetime, body: bytes, position: int) -> None:
    """One character more anywhere in the body, and the reference refuses."""
    text = body.decode()
    cut = position % (len(text) + 1)
    tampered = (text[:cut] + "x" + text[cut:]).encode()
    assert not verifies(secret, signature.headers([secret], message_id, at, body), tampered)


@given(
    secret=secrets, ids=st.lists(message_ids, min_size=2, max_size=2, unique=True), at=moments, body=bodies
)
def test_tampered_id_fails(secret: str, ids: list[str], at: datetime, body: bytes) -> None:
    """Under another message's id the reference refuses."""
    headers = signature.headers([secret], ids[0], at, body) | {"webhook-id": ids[1]}
    assert not verifies(secret, headers, body)


@given(
    secret=secrets,
    message_id=message_ids,
    at=moments,
    body=bodies,
    shift=st.integers(1, 90).flatmap(lambda s: st.sampled_from([s, -s])),
)
def test_tampered_timestamp_fails(
    secret: str, message_id: str, at: datetime, body: bytes, shift: int
) -> None:
    """A timestamp moved within the tolerance no longer fits the signature."""
    headers = signature.headers([secret], message_id, at, body)
    headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) + shift)
    assert not verifies(secret, headers, body)


@each_row("age", [timedelta(seconds=310), timedelta(days=1), timedelta(seconds=-310), timedelta(days=-1)])
def test_replayed_message_fails(age: timedelta) -> None:
    """A message replayed outside the tolerance is refused although its signature is right."""
    assert not verifies(SECRET, signature.headers([SECRET], MESSAGE_ID, datetime.now(UTC) - age, BODY), BODY)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_signatures_are_joined_by_exactly_one_space(count: int) -> None:
    """The reference stumbles over an empty list item, so the list has none."""
    at = datetime.now(UTC)
    listed = signature.headers([signature.new_secret() for _ in range(count)], MESSAGE_ID, at, BODY)[
        "webhook-signature"
    ].split(" ")
    assert len(listed) == count
    assert all(item.startswith("v1,") and len(item) == 47 for item in listed)


@each_row("offset_h", [-11, -1, 1, 14])
def test_zone_of_the_attempt_does_not_matter(offset_h: int) -> None:
    """One moment gives one signature in every time zone; the reference's own `sign` gets this wrong."""
    at = datetime.fromtimestamp(TIMESTAMP, timezone(timedelta(hours=offset_h)))
    assert signature.headers([SECRET], MESSAGE_ID, at, BODY)["webhook-signature"] == SIGNATURE


@each_row("body", [b"", b"\xff\xfe\x00", bytes(range(256)), b"%d %s %%", b"a.b.c", b"x" * 400_000])
def test_exact_bytes_are_signed(body: bytes) -> None:
    """The signature is the HMAC of `id.timestamp.body` for any bytes, readable or not."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = hmac.new(key, f"{MESSAGE_ID}.{TIMESTAMP}.".encode() + body, hashlib.sha256).digest()
    assert signature.sign(SECRET, MESSAGE_ID, TIMESTAMP, body) == "v1," + base64.b64encode(expected).decode()


def test_secret_works_without_its_prefix() -> None:
    """`whsec_` only marks what a string is; the key is what follows."""
    assert signature.sign(SECRET.removeprefix("whsec_"), MESSAGE_ID, TIMESTAMP, BODY) == SIGNATURE


@each_row(
    "secret",
    [
        "whsec_not base64!",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
        "whsec_ÄÖÜ",
        "whsk_MfKQ9r8GKYqrTwjUPD8ILPZI",
    ],
)
def test_secret_that_is_not_base64_is_an_error(secret: str) -> None:
    """A damaged secret never signs: a lenient decoder would drop characters and sign with another key."""
    with pytest.raises(ValueError, match=r"(?i)base64|ascii|padding"):
        signature.sign(secret, MESSAGE_ID, TIMESTAMP, BODY)


def test_new_secrets_are_32_random_bytes() -> None:
    """A new secret has the documented form, as many bytes as the hash, and is never the same twice."""
    made = {signature.new_secret() for _ in range(100)}
    assert len(made) == 100
    assert {len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) for secret in made} == {32}
    assert all(secret.startswith("whsec_") for secret in made)


@given(message_id=message_ids, at=moments, body=bodies)
def test_new_secret_suits_the_reference(message_id: str, at: datetime, body: bytes) -> None:
    """A secret that we make is one that the reference can read and verify with."""
    secret = signature.new_secret()
    assert verifies(secret, signature.headers([secret], message_id, at, body), body)
