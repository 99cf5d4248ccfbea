from collections.abc import Iterator
from typing import Any

import pytest

from tests.stripe_stand_in.process import Receiver, StandIn, receiver, stand_in


@pytest.fixture
def webhooks() -> Iterator[Receiver]:
    """Somebody who takes the stand-in's webhooks."""
    with receiver() as taking:
        yield taking


@pytest.fixture
def stand(tmp_path: Any, webhooks: Receiver) -> Iterator[StandIn]:
    """A fresh stand-in of one's own."""
    with stand_in(tmp_path, webhooks.url) as running:
        yield running


@pytest.fixture
def client(stand: StandIn) -> Any:
    return stand.client
