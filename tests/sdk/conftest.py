"""The SDK against the web process as it really runs."""

from collections.abc import Iterator

import pytest

from buyers.sdk import Client
from marketplace.models import Org
from tests.buyers.conftest import (  # noqa: F401 (fixtures, by their names)
    buyer,
    code,
    key_of,
    node,
    ran,
    site,
    stranger,
    today,
    wanted,
)


@pytest.fixture
def key(buyer: Org) -> str:  # noqa: F811
    return key_of(buyer)


@pytest.fixture
def client(site: str, key: str) -> Iterator[Client]:  # noqa: F811
    with Client(site, key, patience_s=2) as client:
        yield client
