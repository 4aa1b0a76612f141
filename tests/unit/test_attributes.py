"""Attribute values: what we write is what boto3 writes, and what DynamoDB may hold can be read."""

from decimal import Decimal
from typing import Any

import pytest
from boto3.dynamodb.types import TypeSerializer
from hypothesis import given
from hypothesis import strategies as st

from taskhook.adapters.dynamodb.items import item, packed, plain, unpacked

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(min_value=-(10**37), max_value=10**37) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), VALUES))
def test_it_writes_as_boto3_does(attributes: dict[str, Any]) -> None:
    """The SDK's own serializer is the reference."""
    assert item(attributes) == {name: TypeSerializer().serialize(value) for name, value in attributes.items()}


@given(st.dictionaries(st.text(), st.dictionaries(st.text(), st.lists(st.none() | st.booleans() | st.integers() | st.text()))))
def test_what_was_written_is_read(attributes: dict[str, Any]) -> None:
    """Nothing is lost on the way."""
    assert plain(item(attributes)) == attributes


def test_attributes_of_other_versions_are_read_too() -> None:
    """Kinds that this version never writes."""
    stored = {"a": {"N": "1.5"}, "b": {"SS": ["x", "y"]}, "c": {"NS": ["1", "2"]}, "d": {"B": b"\0"}, "e": {"BS": [b"\0"]}}
    assert plain(stored) == {"a": Decimal("1.5"), "b": {"x", "y"}, "c": {1, 2}, "d": b"\0", "e": {b"\0"}}


def test_what_has_no_kind_is_refused() -> None:
    """A float would lose digits, and nothing of ours is one."""
    with pytest.raises(TypeError, match="float"):
        item({"a": 1.5})


@given(st.text())
def test_what_was_packed_is_unpacked(text: str) -> None:
    """It is never longer than it was, whatever it is."""
    assert unpacked(packed(text)) == text
    assert len(packed(text)) <= len(text.encode())


def test_what_is_stored_stays_readable() -> None:
    """These bytes are in tables; whoever changes what texts have in common could not read them any more."""
    text = '{"image_url":"https://example.com/a.jpg","video_url":"https://example.com/b.mp4","mode":"wan-std"}'
    stored = packed(text)
    assert isinstance(stored, bytes)
    assert len(stored) < len(text) / 2
    assert unpacked(bytes.fromhex("c39e87522b80292527552f393f573f11941970642a6475497a90b044cb65b500")) == text
