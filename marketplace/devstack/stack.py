"""Which processes make a whole site on one machine, and what each of them is told.

Ports and secrets are made once and kept in `stack.json`. A service that the environment names
(DATABASE_URL, REDIS_URL, S3_ENDPOINT_URL, or a test key of Stripe's own) is used, not started.
"""

import base64
import fcntl
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from marketplace.devstack import bootstrap, ports
from marketplace.devstack.postgres import Postgres
from marketplace.devstack.process import (
    Child,
    Service,
    StackError,
    Stage,
    answers_http,
    answers_tcp,
)
from marketplace.devstack.seaweed import ACCESS_KEY, Seaweed
from marketplace.devstack.supervisor import need_space
from marketplace.devstack.valkey import Valkey

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / ".gridloom"
_WISHES = (
    *(ports.SITE, ports.AGENTS, ports.STRIPE, ports.POSTGRES, ports.VALKEY),
    *ports.S3_WISHES,
)
# Of the caller's environment, what may reach the processes: settings, and the way out.
_PREFIXES = tuple(
    "POLICY_ THROTTLE_ PACKAGE_ VAULT_ S3_ STRIPE_ EMAIL_ CUDA_ NVIDIA_ PYTHONPYCACHE".split()
)
_NAMES = (
    *("DATABASE_URL", "REDIS_URL", "LOG_LEVEL", "ALLOW_UNSANDBOXED_NODES", "DEBUG"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
_PASSWORDS = ("postgres", "valkey", "s3", "secret_key", "stripe", "webhook")
_SITE = ("--lifespan=on", "--ws-max-size", str(1 << 20))
# Twice the longest message of the protocol (64 KiB): a longer one is refused in words. Compression
# would cost each of thousands of sockets its own buffers, and let small messages unfold to large.
_AGENTS = (
    *("--lifespan=on", "--ws", "websockets-sansio"),
    *("--ws-per-message-deflate", "false", "--ws-max-size", str(128 * 1024)),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Kept:
    """What stack.json remembers."""

    port: dict[str, int]
    secrets: dict[str, str]


@dataclass(frozen=True)
class Stack:
    """One site's folder, ports and secrets by name, and the services they amount to."""

    folder: Path
    port: Mapping[str, int]
    secrets: Mapping[str, str]
    given: Mapping[str, str] = field(default_factory=dict)
    """Settings from the caller's environment. They win over ours."""

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def site_url(self) -> str:
        return self._local(ports.SITE)

    @property
    def agents_url(self) -> str:
        return self._local(ports.AGENTS)

    @property
    def postgres(self) -> Postgres:
        folder = self.folder / "pg"
        return Postgres(folder, self.port[ports.POSTGRES.name], self.secrets["postgres"])

    def environment(self) -> dict[str, str]:
        """What every process of the site is told."""
        return {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self._valkey.url,
            "S3_ENDPOINT_URL": self._s3.url,
            "S3_ACCESS_KEY": ACCESS_KEY,
            "S3_SECRET_KEY": self._s3.secret_key,
            "STRIPE_SECRET_KEY": f"sk_test_{self.secrets['stripe']}",
            "STRIPE_WEBHOOK_SECRET": f"whsec_{self.secrets['webhook']}",
            **({} if self._has_real_stripe else {"STRIPE_API_BASE": self._local(ports.STRIPE)}),
            "SITE_URL": self.site_url,
            "AGENTS_URL": self.agents_url,
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "SECRET_KEY": self.secrets["secret_key"],
            "MARKET_SIGNING_KEY": self.secrets["signing_key"],
            "VAULT_KEYS": self.secrets["vault_key"],
            # Jobs' packages come from where ours came from.
            "PACKAGE_INDEX_URL": bootstrap.registry().index,
            "CELERY_BEAT_FILE": str(self.folder / "run" / "celerybeat-schedule"),
            "SCRATCH_DIR": str(self.folder / "scratch"),
            "PYTHONUNBUFFERED": "1",
            **self.given,
        }

    def data_services(self) -> list[Service]:
        """PostgreSQL, Valkey, S3 and Stripe's stand-in: those nobody else provides."""
        made: list[tuple[bool, Callable[[], Service]]] = [
            ("DATABASE_URL" in self.given, lambda: self.postgres.service(self.logs)),
            ("REDIS_URL" in self.given, self._valkey.service),
            ("S3_ENDPOINT_URL" in self.given, self._s3.service),
            (self._has_real_stripe, self._stripe),
        ]
        return [service() for is_given, service in made if not is_given]

    def site_services(self) -> list[Service]:
        """The market's own five processes."""
        return [
            self._web("web", Stage.WEB, "application", ports.SITE, *_SITE),
            self._web("agents", Stage.AGENTS, "agents", ports.AGENTS, *_AGENTS),
            # Where its loops have changed since they were compiled, it does that first.
            replace(self._celery("clearing", "-Q", "clearing", "-P", "solo"), ready_s=300),
            self._celery("worker", "-Q", "celery", "--concurrency", "2"),
            # One for what is fetched, one for what is checked: either may take hours.
            self._celery("bytes", "-Q", "bytes", "-P", "threads", "--concurrency", "2"),
            Service(
                name="beat",
                stage=Stage.BEAT,
                argv=(*_python("celery"), "-A", "scheduler.celery", "beat", "-l", "INFO"),
                env=self.environment(),
                is_ready=lambda child: child.has_said("beat: Starting"),
                restarts=True,
                grace_s=4,
                cwd=ROOT,
            ),
        ]

    def command(self, *arguments: str) -> Service:
        """A run of manage.py, for `Supervisor.run`."""
        return Service(
            name=arguments[0],
            stage=Stage.WEB,
            argv=(sys.executable, "manage.py", *arguments),
            env=self.environment(),
            is_ready=lambda child: child.exit_code() == 0,
            cwd=ROOT,
        )

    def node(self, name: str, cpus: frozenset[int]) -> Service:
        """A supplier's agent, enrolled before, on cores of its own."""
        return Service(
            name=f"node-{name}",
            stage=Stage.NODES,
            argv=(*_python("agent"), "run", "--state", str(self.node_folder(name))),
            env=self.node_environment(),
            is_ready=lambda child: child.exit_code() is None,
            restarts=True,
            grace_s=10,
            cpus=cpus,
            cwd=ROOT,
        )

    def node_folder(self, name: str) -> Path:
        """An agent's state."""
        return self.folder / "nodes" / name

    def node_environment(self) -> dict[str, str]:
        """An agent is a supplier's: it is told none of the market's secrets."""
        secret = ("DATABASE_URL", "REDIS_URL", "S3_", "STRIPE_", "POLICY_", "EMAIL_", "VAULT_")
        return {"PYTHONUNBUFFERED": "1"} | {
            name: value for name, value in self.given.items() if not name.startswith(secret)
        }

    @property
    def _has_real_stripe(self) -> bool:
        return "STRIPE_SECRET_KEY" in self.given

    @property
    def _valkey(self) -> Valkey:
        folder = self.folder / "valkey"
        return Valkey(folder, self.port[ports.VALKEY.name], self.secrets["valkey"])

    @property
    def _s3(self) -> Seaweed:
        return Seaweed(self.folder / "s3", self.port, self.secrets["s3"])

    def _stripe(self) -> Service:
        port, environment = self.port[ports.STRIPE.name], self.environment()
        return Service(
            name="stripe",
            stage=Stage.STRIPE,
            argv=(
                *_python("marketplace.devstack.stripe_stand_in", "--port", str(port)),
                *("--data", str(self.folder / "stripe")),
                *("--webhook-url", f"{self.site_url}/stripe/webhook"),
            ),
            env={
                name: environment[name] for name in ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET")
            },
            is_ready=lambda _: answers_tcp(port),
            grace_s=4,
            cwd=ROOT,
        )

    def _web(self, name: str, stage: Stage, app: str, port: ports.Wish, *options: str) -> Service:
        number = self.port[port.name]

        def answers(_: Child) -> bool:
            return answers_tcp(number) if stage is Stage.AGENTS else answers_http(self._health)

        return Service(
            name=name,
            stage=stage,
            argv=(
                *_python("uvicorn", f"marketplace.asgi:{app}"),
                *("--host", "127.0.0.1", "--port", str(number), "--no-access-log"),
                *("--timeout-graceful-shutdown", "3", *options),
            ),
            env=self.environment(),
            is_ready=answers,
            restarts=True,
            grace_s=8,
            cwd=ROOT,
        )

    @property
    def _health(self) -> str:
        return f"{self.site_url}/healthz"

    def _celery(self, name: str, *arguments: str) -> Service:
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        return Service(
            name=name,
            stage=Stage.WORKERS,
            argv=(
                *_python("celery", "-A", "scheduler.celery", "worker", "-l", "INFO"),
                *("-n", f"{name}@%h", *quiet, *arguments),
            ),
            env=self.environment(),
            is_ready=lambda child: child.has_said(" ready."),
            restarts=True,
            cwd=ROOT,
        )

    def _local(self, port: ports.Wish) -> str:
        return f"http://127.0.0.1:{self.port[port.name]}"


@contextmanager
def opened(folder: Path, say: Say, *, anywhere: bool = False) -> Iterator[Stack]:
    """The stack of this folder, for us alone: its ports chosen, its secrets made or found again.

    With `anywhere`, on ports at random (tests). Raises StackError.
    """
    need_space(folder)
    (folder / "run").mkdir(exist_ok=True)
    (folder / "logs").mkdir(mode=0o700, exist_ok=True)  # they hold the accounts' passwords
    with _alone(folder):
        kept = _read(folder / "stack.json")
        chosen = ports.anywhere(_WISHES) if anywhere else ports.choose(_WISHES, kept.port, say=say)
        stack = Stack(folder, chosen, _new_secrets() | kept.secrets, _given(os.environ, say))
        _write(folder / "stack.json", _Kept(chosen, dict(stack.secrets)))
        yield stack


def split_cores(parts: int) -> list[frozenset[int]]:
    """This process's cores in `parts` disjoint sets; all of them to each if there are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < parts:
        return [frozenset(cores)] * parts
    return [frozenset(cores[part::parts]) for part in range(parts)]


def _given(environment: Mapping[str, str], say: Say) -> dict[str, str]:
    given = {
        name: value
        for name, value in environment.items()
        if value and (name in _NAMES or name.startswith(_PREFIXES))
    }
    key = given.get("STRIPE_SECRET_KEY", "")
    if key and not key.startswith("sk_test_"):
        raise StackError(
            "STRIPE_SECRET_KEY is not a test key (sk_test_…): this stack is for development, and "
            "moves no real money. Unset it, or give a test key."
        )
    for name, what in (
        ("DATABASE_URL", "PostgreSQL"), ("REDIS_URL", "Valkey"), ("S3_ENDPOINT_URL", "object store"),
    ):  # fmt: skip
        if name in given:
            say(f"Using the {what} that {name} names, not one of our own.")
    if key:
        say("Using Stripe itself, in test mode (STRIPE_SECRET_KEY), not the stand-in.")
    return given


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "run" / "stack.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"The stack in {folder} runs already (process {lock.read().strip() or '?'}): use "
                f"that one, or stop it with Ctrl-C where it runs."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _new_secrets() -> dict[str, str]:
    made = {name: secrets.token_hex(20) for name in _PASSWORDS}
    return made | {
        "signing_key": base64.b64encode(secrets.token_bytes(32)).decode(),
        "vault_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }


def _read(path: Path) -> _Kept:
    if not path.exists():
        return _Kept({}, {})
    try:
        return _Kept(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise StackError(
            f"{path} is damaged. `make clean` removes it with the data whose passwords it held."
        ) from None


def _write(path: Path, kept: _Kept) -> None:
    """Whole or not at all, and only for our own eyes."""
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(asdict(kept), indent=2))
    draft.replace(path)


def _python(module: str, *arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", module, *arguments)
