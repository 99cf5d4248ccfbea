"""What every test may ask for. Services are real, and start only when a test needs them.

`db` brings PostgreSQL, `valkey` the broker and the channel layer, `s3` the object store; each
starts once a session, on a free port, in a temporary folder. A pure test starts nothing.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from marketplace.devstack import ports
from marketplace.devstack.postgres import Postgres
from marketplace.devstack.seaweed import Seaweed
from marketplace.devstack.supervisor import Supervisor
from marketplace.devstack.valkey import Valkey

# As recipes set it. Some modules of tests import torch before, and of models as small as theirs two
# thirds would be threads that turn in a circle.
os.environ["OMP_WAIT_POLICY"] = "passive"
# Nothing is judged by its pace.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

# Whole markets and gangs, whose leases and notices run out in real seconds: they begin first, one
# after another in one process. Beside them two more are at work, first with what computes in one
# process, then with the others, of which what takes longest begins first. All others wait for the live
# ones: too busy a machine would break the seconds that these promise.
_LIVE = ("tests/story/", "tests/agent/gang/")
_BESIDE = 2
_FIRST = (
    *_LIVE, "tests/recipes/test_ladder.py", "tests/recipes", "tests/matching", "tests/core",
    "tests/docs", "tests/architecture", "tests/benchmarks/test_market.py",
    "tests/scheduler/test_commit.py", "tests/agent/sandbox/test_as_ordinary_user.py",
    "tests/buyers/test_browser.py", "tests/buyers/test_bases.py",
)  # fmt: skip


class _ByModule(LoadFileScheduling):
    """A module's tests stay in one process, and all that are live in one."""

    def _split_scope(self, nodeid: str) -> str:
        return _LIVE[0] if nodeid.startswith(_LIVE) else str(super()._split_scope(nodeid))

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self.nodes.index(node) <= _BESIDE or not self._is_live():
            super()._assign_work_unit(node)

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        was = self._is_live()
        super().mark_test_complete(node, item_index, duration)
        if was and not self._is_live():
            # One unit each, and another, as at first: a process begins a test once it knows the next.
            for other in 2 * self.nodes:
                self._reschedule(other)

    def _is_live(self) -> bool:
        """Whether any that are live still have to run."""
        units = (self.workqueue, *self.assigned_work.values())
        return any(not all(unit.get(_LIVE[0], {}).values()) for unit in units)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByModule(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((at for at, path in enumerate(_FIRST) if item.nodeid.startswith(path)), len(_FIRST))


@pytest.fixture(scope="session", autouse=True)
def every_round_is_checked() -> Iterator[None]:
    """The checker, which shares no code with the engine, agrees on each round that a test clears."""
    loaded = [sys.modules.get(f"scheduler.{name}") for name in ("matching.clear", "clearing")]
    if loaded[0] is None:  # the tests of this session know no rounds
        yield
        return
    from scheduler.matching.check import check

    engine = loaded[0].follow

    def follow(book: Any, *terms: Any) -> Any:
        matches, balance = engine(book, *terms)
        assert check(book, matches) == []
        return matches, balance

    with pytest.MonkeyPatch.context() as patch:
        for module in filter(None, loaded):
            patch.setattr(module, "follow", follow)
        yield


@pytest.fixture
def now() -> datetime:
    """A moment all of a test agrees on."""
    return datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def services_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's services keep their data and logs."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def supervisor(services_dir: Path) -> Iterator[Supervisor]:
    """Runs the session's services, and stops them at its end."""
    with Supervisor(services_dir / "logs") as it:
        yield it


@pytest.fixture(scope="session")
def postgres(supervisor: Supervisor, services_dir: Path) -> Postgres:
    """A real PostgreSQL. Tests of models ask for `db`, which brings it."""
    port = ports.anywhere([ports.POSTGRES])[ports.POSTGRES.name]
    it = Postgres(services_dir / "pg", port, secrets.token_hex(8), durable=False)
    supervisor.start(it.service(services_dir / "logs"))
    it.prepare()
    return it


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    postgres: Postgres, django_db_modify_db_settings_parallel_suffix: None
) -> None:
    """Points Django at it, before pytest-django makes the test database."""
    from django.conf import settings

    from tests import flush

    flush.past_the_guards()
    settings.DATABASES["default"].update(
        HOST="127.0.0.1", PORT=str(postgres.port), PASSWORD=postgres.password
    )


@pytest.fixture(scope="session")
def valkey(supervisor: Supervisor, services_dir: Path) -> Valkey:
    """A real Valkey behind telemetry, the channel layer and Celery's bells."""
    port = ports.anywhere([ports.VALKEY])[ports.VALKEY.name]
    it = Valkey(services_dir / "valkey", port, secrets.token_hex(8))
    supervisor.start(it.service())
    _use_redis(it.url)
    return it


@pytest.fixture(scope="session")
def s3(supervisor: Supervisor, services_dir: Path) -> Seaweed:
    """A real object store with an empty bucket behind marketplace.storage."""
    it = Seaweed(services_dir / "s3", ports.anywhere(ports.S3_WISHES), secrets.token_hex(16))
    supervisor.start(it.service())
    _use_s3(it)
    return it


def _use_redis(url: str) -> None:
    from channels.layers import channel_layers
    from django.conf import settings

    from marketplace import telemetry
    from scheduler.celery import app

    settings.REDIS_URL = url
    config: dict[str, Any] = settings.CHANNEL_LAYERS["default"]["CONFIG"]
    config["hosts"][0]["address"] = url
    channel_layers.backends.clear()
    telemetry._redis.cache_clear()
    app.conf.broker_url = url


def _use_s3(store: Seaweed) -> None:
    from django.conf import settings

    from marketplace import storage

    settings.S3_ENDPOINT_URL = store.url
    settings.S3_SECRET_KEY = store.secret_key
    storage._client.cache_clear()
    storage.ensure_bucket()
