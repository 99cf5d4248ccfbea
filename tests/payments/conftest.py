from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from marketplace.models import Org
from tests.stripe_stand_in.process import (
    SECRET_KEY,
    WEBHOOK_SECRET,
    Receiver,
    StandIn,
    receiver,
    stand_in,
)


@pytest.fixture
def now() -> datetime:
    """The processor is another process, and has its own clock: the real one."""
    return timezone.now()


@pytest.fixture(scope="session")
def webhooks_of_all() -> Iterator[Receiver]:
    with receiver() as taking:
        yield taking


@pytest.fixture(scope="session")
def stand_of_all(
    tmp_path_factory: pytest.TempPathFactory, webhooks_of_all: Receiver
) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("stripe"), webhooks_of_all.url) as running:
        yield running


@pytest.fixture
def webhooks(webhooks_of_all: Receiver) -> Receiver:
    """The processor's webhooks, which a test delivers as it likes, or not at all."""
    with webhooks_of_all.came:
        webhooks_of_all.taken.clear()
    return webhooks_of_all


@pytest.fixture
def stand(stand_of_all: StandIn, webhooks: Receiver, settings: Any) -> StandIn:
    """The processor, as far as the site knows."""
    use(settings, stand_of_all)
    return stand_of_all


@pytest.fixture
def start_stand(tmp_path: Path, settings: Any) -> Callable[..., AbstractContextManager[StandIn]]:
    """A processor of one's own, to start and stop at will: `with start_stand(webhook_url):`."""

    @contextmanager
    def start(webhook_url: str = "", *options: str) -> Iterator[StandIn]:
        with stand_in(tmp_path, webhook_url, *options) as running:
            use(settings, running)
            yield running

    return start


def use(settings: Any, stand: StandIn) -> None:
    settings.STRIPE_API_BASE = stand.url
    settings.STRIPE_SECRET_KEY = SECRET_KEY
    settings.STRIPE_WEBHOOK_SECRET = WEBHOOK_SECRET


@pytest.fixture
def buyer(db: None, now: datetime) -> Org:
    return Org.objects.create(name="Ada's lab", slug="ada", created_at=now)


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_user("ada", "ada@example.org", "a password")
