"""A job in an image sees its files alone, and is walled in like any other."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.order import Image
from agent.sandbox import image, unpack, visits
from tests.agent.sandbox.jobs import Assignment, each_wall
from tests.agent.sandbox.test_visits import shows, types

TOOLS = ("sh", "cat", "ls", "id", "mkdir", "cp", "chroot", "whoami", "env")
WAITS = "echo ready; while read line; do echo $line; done < /dev/ptmx"


def system(*names: str) -> dict[str, bytes]:
    """Programs of this host, with the libraries that they need: path as in a tar → content."""
    found: dict[str, bytes] = {}
    for name in names:
        program = Path(shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")).resolve()
        found[f"bin/{name}"] = program.read_bytes()
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in re.findall(r"(/\S+) \(0x", told):
            found[path.lstrip("/")] = Path(path).read_bytes()
    return found


@pytest.fixture
def rootfs(place: Path) -> Path:
    """A tiny one, as `unpack` leaves them."""
    root = place / "rootfs"
    for path in unpack.MOUNTS:
        (root / path).mkdir(mode=0o755, parents=True, exist_ok=True)
    for path in unpack.FILES:
        (root / path).touch(mode=0o644)
    for path, data in system(*TOOLS).items():
        (root / path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        (root / path).chmod(0o755)
    (root / "etc/motd").write_text("the image's\n")
    for path in (place, root):
        path.chmod(0o755)
    return root


@each_wall
def test_a_job_sees_the_images_files_and_no_others(assignment: Assignment, rung, rootfs):
    (assignment.folder / "job").mkdir(exist_ok=True)
    status = assignment.run(
        rung,
        *("sh", "-c", "cat /etc/motd; ls / /opt/gridloom; whoami; echo $A; cat /etc/hostname"),
        image=Image(rootfs=str(rootfs), env={"A": "the image's A", "PATH": "/bin"}),
    )
    seen = assignment.stdout().splitlines()
    assert seen[0] == "the image's", assignment.stderr()
    listed = {line for line in seen[1:] if line}
    inside = {path.name for path in rootfs.iterdir()}
    assert listed == inside | {"/:", "/opt/gridloom:", "job", "the image's A"}
    assert status.exit_code == 1, "the host's name is told nobody"


@each_wall
def test_a_job_in_an_image_keeps_no_rights_and_finds_no_way_out(
    assignment: Assignment, rung, rootfs
):
    assignment.run(
        rung,
        *("sh", "-c", "cat /proc/self/status; chroot /job /bin/sh; echo x > /x; ls /proc/1/root/"),
        image=Image(rootfs=str(rootfs), env={"PATH": "/bin"}),
    )
    seen, said = assignment.stdout(), assignment.stderr()
    for mask in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert re.search(rf"^{mask}:\s+0+$", seen, re.MULTILINE), seen
    assert re.search(r"^Seccomp:\s+2$", seen, re.MULTILINE)
    assert "cannot change root directory" in said
    assert "Read-only file system" in said
    assert "/proc/1/root/'" in said
    assert image.TOP[1:] not in seen


@each_wall
def test_a_shell_and_the_gate_are_there_in_an_image_too(assignment: Assignment, rung, rootfs):
    assignment.start(
        rung, "sh", "-c", WAITS,
        image=Image(rootfs=str(rootfs), env={"PATH": "/bin", "MINE": "the image's"}),
        egress=["example.org"],
    )  # fmt: skip
    assignment.until_it_said("ready")
    with visits.visit(assignment.folder) as terminal:
        types(terminal, "cat /etc/motd; echo $MINE by $HTTPS_PROXY; echo do''ne\n")
        shown = shows(terminal, "done")
    assert "the image's by http://127.0.0.1:" in shown
