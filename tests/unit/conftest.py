"""Unit tests touch nothing outside their own process."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from pytest_socket import disable_socket, enable_socket

settings.register_profile("unit", deadline=None)  # a loaded machine is no finding
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_sockets() -> Iterator[None]:
    """Refuse every socket but the pair with which an event loop wakes itself."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
