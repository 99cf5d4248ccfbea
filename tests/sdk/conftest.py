"""The SDK against the web process as it really runs."""

from collections.abc import Iterator

import pytest

from buyers.models import Dataset
from buyers.sdk import Client
from marketplace.models import Org
from tests.buyers.conftest import (  # noqa: F401 (fixtures, by their names)
    buyer,
    folder,
    key_of,
    node,
    ran,
    site,
    stranger,
    today,
)


@pytest.fixture
def key(buyer: Org) -> str:  # noqa: F811
    return key_of(buyer)


@pytest.fixture
def client(site: str, key: str) -> Iterator[Client]:  # noqa: F811
    with Client(site, key, patience_s=2) as client:
        yield client


@pytest.fixture
def wanted(buyer: Org) -> dict[str, object]:  # noqa: F811
    """A job that fits any node."""
    files = [{"path": "main.py", "bytes": 1, "sha256": "0" * 64}]
    Dataset.objects.create(
        **folder(org=buyer, name="code", version=1, created_by="me", manifest=files)
    )
    return {
        "recipe": "script", "script": "code", "parameters": {"entry": "main.py"}, "budget": "5",
        "memory_gib": 2, "hours": 0.5, "limit": "3",
    }  # fmt: skip
