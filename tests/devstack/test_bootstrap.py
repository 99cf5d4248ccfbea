"""The bootstrap: nothing to do the second time, and a sentence for each way it can fail."""

import hashlib
import http.server
import io
import json
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from marketplace.devstack import bootstrap
from marketplace.devstack.bootstrap import Registry, SetupError
from tests.serving import on_loopback, running

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9/simple"


@pytest.fixture
def told() -> list[str]:
    return []


def test_a_second_run_does_nothing(tmp_path, told):
    lock = tmp_path / "requirements.lock"
    lock.write_text("uv==0.13.9\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "gridloom-setup").write_text(bootstrap.fingerprint(lock))
    bootstrap.set_up(tmp_path, told.append)
    assert told == []
    assert {path.name for path in tmp_path.iterdir()} == {"requirements.lock", ".venv"}


def test_a_changed_lock_makes_the_environment_anew(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("django==5.2.19\n")
    before = bootstrap.fingerprint(lock)
    lock.write_text("django==5.2.20\n")
    assert bootstrap.fingerprint(lock) != before


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path):
    with pytest.raises(SetupError, match="GiB free; .* need .* GiB. Make room"):
        bootstrap.need_space(tmp_path, needed=1 << 60)


@pytest.mark.parametrize(
    "output", ["error: No space left on device (os error 28)", "[Errno 28] No space left on device"]
)
def test_a_disk_that_fills_on_the_way_is_said(output):
    assert bootstrap.explain(output, Registry()).startswith("The disk is full. Make room")


def test_an_unreachable_registry_is_said_with_the_way_out(tmp_path, told, monkeypatch):
    monkeypatch.setattr(bootstrap.time, "sleep", lambda seconds: None)
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9.*can't be reached.*PIP_INDEX_URL"):
        bootstrap.fetch_uv(tmp_path, "0.13.9", Registry(index=NOBODY), told.append)


def test_a_registry_that_vanishes_while_uv_works_is_said():
    said = bootstrap.explain("error: Failed to fetch: `https://x`\n dns error", Registry())
    assert said.startswith("The package registry https://pypi.org/simple can't be reached")


def test_another_fault_of_uv_is_shown_as_it_is():
    assert bootstrap.explain("error: no such version\n", Registry()) == "error: no such version"


def test_a_wrong_python_is_said_with_the_way_out(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SetupError, match=r"needs Python 3\.11.*make setup PYTHON="):
        bootstrap.need_python([])


def test_pip_s_configuration_is_obeyed_its_environment_first(tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a.example/simple/\nfind-links = /wheels /more\n"
        "[install]\ncert = /ca.pem\n"
    )
    named = {"PIP_CONFIG_FILE": str(config), "HOME": str(tmp_path)}
    assert bootstrap.registry(named) == Registry(
        "https://a.example/simple", ("/wheels", "/more"), "/ca.pem"
    )
    named["PIP_INDEX_URL"] = "https://b.example/simple"
    assert bootstrap.registry(named).index == "https://b.example/simple"


def test_a_local_build_of_torch_is_taken_where_there_is_one(tmp_path):
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    here = Registry(find_links=(str(tmp_path),)).for_uv()
    assert here["UV_FIND_LINKS"] == str(tmp_path)
    assert "UV_TORCH_BACKEND" not in here


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the registry's own build is right")
def test_elsewhere_uv_chooses_the_build_of_torch_for_this_machine(tmp_path):
    assert Registry(find_links=(str(tmp_path),)).for_uv()["UV_TORCH_BACKEND"] == "auto"


def test_a_lock_carries_nothing_of_the_machine_that_made_it():
    resolved = (
        "numpy==2.4.6\n\nnvidia-ml-py==13.6\nnvidia-cublas==1\ntriton==3\ntorch==2.13.0+cpu\n"
    )
    assert bootstrap.portable(resolved) == "numpy==2.4.6\nnvidia-ml-py==13.6\ntorch==2.13.0\n"


def test_the_lock_pins_everything_that_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        _name(line)
        for lines in (project["dependencies"], *project["optional-dependencies"].values())
        for line in lines
    }
    text = (ROOT / "requirements.lock").read_text()
    pinned = {_name(line) for line in text.splitlines() if not line.startswith("#")}
    assert declared <= pinned
    assert "+cpu" not in text
    assert re.findall(r"^nvidia-.*", text, re.MULTILINE) == [
        line for line in text.splitlines() if line.startswith("nvidia-ml-py==")
    ]


@pytest.mark.parametrize("form", ["json", "html"])
def test_uv_is_taken_from_the_wheel_that_the_index_names(tmp_path, told, index, form):
    url, wheel = index(form)
    program = bootstrap.fetch_uv(tmp_path, "9.9.9", Registry(index=url), told.append)
    assert program.read_bytes() == b"the program"
    assert program.stat().st_mode & 0o111
    wheel.clear()  # a second time nothing is fetched
    assert bootstrap.fetch_uv(tmp_path, "9.9.9", Registry(index=url), told.append) == program


def test_a_wheel_that_is_not_what_the_index_says_is_refused(tmp_path, told, index):
    url, wheel = index("json")
    wheel["bytes"] = b"something else"
    with pytest.raises(SetupError, match="is not what the index says"):
        bootstrap.fetch_uv(tmp_path, "9.9.9", Registry(index=url), told.append)


@pytest.fixture
def index():
    """A package index that has one wheel of one version of uv, for every machine."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("uv-9.9.9.data/scripts/uv", "the program")
    wheel = {"bytes": archive.getvalue()}
    sha256 = hashlib.sha256(archive.getvalue()).hexdigest()
    names = [
        f"uv-9.9.9-py3-none-{system}_{machine}.whl"
        for system in ("manylinux_2_17", "musllinux_1_1", "macosx_11_0")
        for machine in ("x86_64", "aarch64", "arm64")
    ]
    pages = {
        "json": json.dumps(
            {"files": [{"url": f"/files/{n}", "hashes": {"sha256": sha256}} for n in names]}
        ),
        "html": "".join(f'<a href="/files/{n}#sha256={sha256}">{n}</a>' for n in names),
    }

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            form = self.path.split("/")[1]
            body = wheel["bytes"] if form == "files" else pages[form].encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with running(on_loopback(Index)) as server:
        yield lambda form: (f"http://127.0.0.1:{server.server_port}/{form}", wheel)


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=;! ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
