"""Unit tests touch nothing outside their own process."""

from collections.abc import Iterator

import pytest
from pytest_socket import disable_socket, enable_socket


@pytest.fixture(autouse=True)
def no_sockets() -> Iterator[None]:
    """Refuse every socket but the pair with which an event loop wakes itself."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
