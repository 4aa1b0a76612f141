import base64
import json

import pytest

from taskhook.api import strict_json
from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_BODY
from taskhook.core.message import Json
from tests.rows import each_row


@pytest.mark.parametrize("body", [{}, {"a": None, "b": [1, 2.5, {"c": "ü", "d": True}], "": "新"}])
def test_an_object_is_read_as_it_is(body: Json) -> None:
    """As text or as base64, escaped or not."""
    for raw in (json.dumps(body), json.dumps(body, ensure_ascii=False)):
        assert strict_json.read(raw) == body
        assert strict_json.read(base64.b64encode(raw.encode()).decode(), is_base64=True) == body


@each_row(
    ("raw", "words"),
    [
        ("", "invalid JSON format"),
        ("no", "invalid JSON format"),
        ('{"a":1', "invalid JSON format"),
        ('{"a":1}{}', "invalid JSON format"),
        ("[]", "must be a JSON object"),
        ('"x"', "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('{"a":1,"a":1}', "the key 'a' is given twice"),
        ('{"a":{"b":1,"b":2}}', "the key 'b' is given twice"),
        (f'{{"{"k" * 200}":1,"{"k" * 200}":1}}', f"the key '{'k' * 100}' is given twice"),
        ('{"a":NaN}', "NaN is not JSON"),
        ('{"a":[-Infinity]}', "-Infinity is not JSON"),
        ('{"\\ud800":1}', "a key is no text"),
        ('{"a":{"\\udfff":1}}', "a key is no text"),
        ("[" * 60_000, "nested too deeply"),
        ("1" * 5000, "invalid JSON format"),
    ],
    ids=lambda value: value[:16] or "nothing",
)
def test_what_parsers_disagree_about_is_refused(raw: str, words: str) -> None:
    """A 400 that says what is wrong, in words that can be sent."""
    with pytest.raises(RejectedError, match=words) as rejected:
        strict_json.read(raw)
    assert rejected.value.status == 400
    rejected.value.message.encode()


def test_a_whole_surrogate_pair_is_text() -> None:
    """JSON spells every character beyond the first 65,536 with two."""
    assert strict_json.read('{"\\ud83d\\ude00":"\\ud83d\\ude00"}') == {"😀": "😀"}


def test_half_a_surrogate_pair_in_the_text_itself_is_no_crash() -> None:
    """Such a body is read with a question mark in its place."""
    assert strict_json.read('{"a":"\ud800"}') == {"a": "?"}


@pytest.mark.parametrize("raw", ["abc", base64.b64encode(b'{"\xff\xfe"}').decode()])
def test_bytes_that_are_no_text_are_refused(raw: str) -> None:
    """Base64 that is none, and bytes that are not UTF-8."""
    with pytest.raises(RejectedError) as rejected:
        strict_json.read(raw, is_base64=True)
    assert rejected.value.status == 400


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_body_is_bounded_in_bytes(letter: str) -> None:
    """Before it is parsed; the largest one that may be is read."""
    text = letter * ((MAX_BODY - len('{"a":""}')) // len(letter.encode()))
    assert strict_json.read(f'{{"a":"{text}"}}') == {"a": text}
    for raw, is_base64 in (
        (f'{{"a":"{text}{letter}"}}', False),
        (base64.b64encode(b" " * (MAX_BODY + 1)).decode(), True),
    ):
        with pytest.raises(RejectedError, match="larger than 65536 bytes") as rejected:
            strict_json.read(raw, is_base64=is_base64)
        assert rejected.value.status == 413
