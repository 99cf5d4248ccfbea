"""PostgreSQL on this machine: as root too, after a crash too, and with a word where it can't."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import psycopg
import pytest

from marketplace.devstack import ports, process
from marketplace.devstack.postgres import Postgres, clear_stale_pid
from marketplace.devstack.process import StackError, answers_tcp
from marketplace.devstack.supervisor import Supervisor

is_root = os.geteuid() == 0


@pytest.fixture
def cluster(tmp_path) -> Postgres:
    port = ports.anywhere([ports.POSTGRES])[ports.POSTGRES.name]
    return Postgres(tmp_path / "pg", port, "a-password", durable=False)


def test_it_comes_back_with_its_data_after_kill_9(cluster, tmp_path):
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(cluster.service(tmp_path / "logs"))
        cluster.prepare()
        with psycopg.connect(cluster.url, autocommit=True) as db:
            db.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(supervisor.pid("postgres"), signal.SIGKILL)
        service = supervisor.end("postgres")
        assert (cluster.folder / "postmaster.pid").exists()
        supervisor.start(replace(service, argv=cluster.service(tmp_path / "logs").argv))
        with psycopg.connect(cluster.url) as db:
            assert db.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_the_market_is_no_superuser_and_nobody_gets_in_without_a_password(postgres):
    with psycopg.connect(postgres.url) as db:
        assert db.execute("SHOW is_superuser").fetchone() == ("off",)
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(postgres.url.replace(postgres.password, "wrong"))


def test_preparing_twice_changes_nothing(postgres):
    postgres.prepare()
    postgres.prepare()


def test_a_password_of_another_stack_is_said_at_once(cluster, tmp_path):
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start(cluster.service(tmp_path / "logs"))
    other = replace(cluster, password="another")
    with (
        Supervisor(tmp_path / "logs") as supervisor,
        pytest.raises(StackError, match="make clean"),
    ):
        supervisor.start(other.service(tmp_path / "logs"))


def test_a_pid_file_that_names_somebody_else_is_removed(tmp_path):
    """After a reboot, or in a container, another process often has the number by now."""
    lock = tmp_path / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{tmp_path}\n")
    clear_stale_pid(tmp_path)
    assert not lock.exists()


@pytest.mark.parametrize("text", ["", "what?\n", f"{2**22 + 5}\n"])
def test_a_pid_file_that_names_nobody_is_removed(tmp_path, text):
    (tmp_path / "postmaster.pid").write_text(text)
    clear_stale_pid(tmp_path)
    assert not (tmp_path / "postmaster.pid").exists()


def test_a_postmaster_left_from_a_killed_stack_is_stopped(tmp_path):
    """Anything that works in the folder stands in for one; it is asked as PostgreSQL is."""
    # PostgreSQL sets its own handler; who starts us may have SIGINT ignored, and children inherit.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as left:
        left.stdout.readline()
        (tmp_path / "postmaster.pid").write_text(f"{left.pid}\n")
        clear_stale_pid(tmp_path)
        assert left.wait(0) != 0
    assert not (tmp_path / "postmaster.pid").exists()


@pytest.mark.skipif(not is_root, reason="only root is refused by PostgreSQL")
def test_root_without_user_namespaces_is_told_of_database_url(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "may_make_user_namespace", lambda: False)
    with pytest.raises(StackError, match=r"refuses user namespaces.*DATABASE_URL"):
        cluster.service(tmp_path / "logs")  # pytest's folders are closed to others
    assert not answers_tcp(cluster.port)


@pytest.mark.skipif(not is_root, reason="only root can become somebody else")
def test_root_without_user_namespaces_becomes_nobody_where_that_can_work(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "may_make_user_namespace", lambda: False)
    monkeypatch.setattr(process, "_closed_to_others", lambda paths: None)
    folder = tmp_path / "data"
    folder.mkdir()
    service = process.Service(
        "postgres", process.Stage.POSTGRES, ("/bin/true",), {}, lambda _: True,
        as_somebody=True, owned=(folder,),
    )  # fmt: skip
    done = subprocess.run(
        ["id", "-u"], preexec_fn=process.preparation(service), capture_output=True, text=True
    )
    assert done.stdout == "65534\n"
    assert folder.stat().st_uid == 65534


def test_a_cluster_that_cant_be_made_leaves_no_half_of_one(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("marketplace.devstack.postgres.binary", lambda name: "/bin/false")
    with pytest.raises(StackError, match="could not make its data folder"):
        cluster.service(tmp_path / "logs")
    assert not cluster.folder.exists()
