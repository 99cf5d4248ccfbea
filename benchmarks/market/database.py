"""A database, broker and telemetry of a benchmark's own, and processes that work on them."""

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marketplace.devstack import ports
from marketplace.devstack.postgres import Postgres
from marketplace.devstack.supervisor import Supervisor
from marketplace.devstack.valkey import Valkey


@contextmanager
def services(*, durable: bool) -> Iterator[dict[str, str]]:
    """PostgreSQL with our tables and Valkey, and the environment that leads to them."""
    with tempfile.TemporaryDirectory() as folder, Supervisor(Path(folder) / "logs") as services:
        found = ports.anywhere([ports.POSTGRES, ports.VALKEY])
        postgres = Postgres(
            Path(folder) / "pg", found["postgres"], secrets.token_hex(8), durable=durable
        )
        valkey = Valkey(Path(folder) / "valkey", found["valkey"], secrets.token_hex(8))
        services.start(postgres.service(Path(folder) / "logs"), valkey.service())
        postgres.prepare()
        env = os.environ | {
            "DJANGO_SETTINGS_MODULE": "marketplace.settings", "DEBUG": "true", "LOG_LEVEL": "ERROR",
            "DATABASE_URL": postgres.url, "REDIS_URL": valkey.url, "SECRET_KEY": "of-a-benchmark",
        }  # fmt: skip
        subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], env=env, check=True)
        yield env


def told_by(module: str, *arguments: str, env: Mapping[str, str]) -> dict[str, Any]:
    """What a module, run in a process of its own, prints last, as one line of JSON."""
    command = [sys.executable, "-m", module, *arguments]
    ran = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
