"""The node as it finds itself, on this very machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from agent import environment, hardware, nvml
from agent.config import State
from agent.environment import EnvironmentMissing
from agent.nvml import foreign
from agent.protocol import Device
from agent.sampling import Foreign, Rapl, Sampler, cpu_seconds, tree
from tests.agent import node as nodes


@pytest.fixture
def state(tmp_path: Path) -> State:
    it = State(tmp_path)
    it.make()
    return it


@pytest.mark.skipif(nvml.open_nvml() is not None, reason="this machine has a GPU to list")
def test_a_machine_without_a_gpu_lists_its_processor(state: State):
    found = nodes.machine(state).inventory
    [device] = found.devices
    cores = len(os.sched_getaffinity(0))
    assert (device.kind, device.cores, found.cpu_cores) == ("cpu", cores, cores)
    assert device.uuid.startswith("CPU-")
    assert device.name == found.cpu_model
    assert 0 < device.memory_bytes < found.memory_bytes <= psutil.virtual_memory().total
    assert found.disk_bytes > 0


def test_a_processor_is_another_device_by_other_cores_or_another_folder(state: State):
    one = hardware.cpu_uuid(state, [0, 1])
    assert hardware.cpu_uuid(state, [0, 1]) == one
    assert (
        len({one, hardware.cpu_uuid(state, [0]), hardware.cpu_uuid(State(Path("/x")), [0, 1])}) == 3
    )


def test_the_environment_is_what_its_python_has_installed():
    found = environment.look()
    assert found.shown.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found.shown.packages["numpy"]
    assert "msgspec" not in found.shown.packages  # no training package: it counts in the lock only
    assert found.folders[0] == sys.prefix
    assert found == environment.look(sys.executable)


def test_the_lock_is_over_every_package_and_version():
    packages = {"torch": "2.13.0", "numpy": "2.4"}
    lock = environment.lock(packages)
    assert environment.lock(dict(reversed(packages.items()))) == lock
    assert environment.lock(packages | {"numpy": "2.5"}) != lock
    assert environment.lock(packages | {"extra": "1"}) != lock


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false"])
def test_an_environment_that_does_not_run_is_said(python: str):
    with pytest.raises(EnvironmentMissing, match=python):
        environment.look(python)


def test_a_sample_tells_what_the_processor_does():
    device = Device(uuid="CPU-1", kind="cpu", index=0, name="p", memory_bytes=2**40, cores=1)
    sampler = Sampler([device], [0], None)
    [sample] = sampler.take()
    assert 0 <= sample.utilisation <= 100
    assert sample.memory_bytes > 0
    full = sampler.full_power(["CPU-1"])
    assert (full.watts, full.measured) == (4.0, False)
    power = sampler.power(["CPU-1"])
    assert power.measured == sampler.measures
    if not power.measured:
        assert sample.watts == 0
        assert 0 <= power.watts <= 4.0


def _zone(root: Path, name: str, joules: float) -> Path:
    zone = root / name
    zone.mkdir()
    (zone / "name").write_text("package-0\n")
    (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    return zone


def test_power_is_measured_where_the_packages_count_it(tmp_path: Path):
    zone = _zone(tmp_path, "intel-rapl:0", joules=990)
    _zone(tmp_path, "intel-rapl:0:0", joules=5)
    (tmp_path / "intel-rapl:0:0" / "name").write_text("core\n")  # part of the package
    rapl = Rapl(tmp_path)
    begun = time.monotonic()
    time.sleep(0.3)
    (zone / "energy_uj").write_text("5000000\n")  # it has wrapped: 15 J in all
    watts = rapl.watts()
    elapsed = time.monotonic() - begun
    assert watts is not None
    assert 0.5 * 15 / elapsed < watts <= 15 / 0.3


def test_where_nothing_counts_nothing_is_measured(tmp_path: Path):
    assert Rapl(tmp_path).watts() is None


def test_the_processes_below_a_keeper_are_its_jobs():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            deadline = time.monotonic() + 30
            while len(tree(process.pid)) < 2 or cpu_seconds(tree(process.pid)) < 0.2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, 9)
    assert tree(process.pid) == []


def test_the_agents_own_work_is_not_the_owners(state: State):
    foreign = Foreign(sorted(os.sched_getaffinity(0)), None)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    ours = cpu_seconds([psutil.Process()])
    load = foreign.read([])
    assert ours > 0.1
    assert 0 <= load.share <= 1
    assert load.gpu_program == ""


def test_a_stranger_on_a_gpu_is_noticed():
    assert foreign([5, 6], [5]) == "process 6"
    assert foreign([5], [5, 6]) == ""
