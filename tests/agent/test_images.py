"""Jobs in container images: fetched by digest, laid out once, and walled in as every job is."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import config, orders
from agent.config import Network, State
from agent.protocol import Image, Input
from agent.sandbox import unpack
from tests import debian
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market
from tests.registry import Registry, layer, served

pytestmark = pytest.mark.timeout(600)  # podman may have to be installed first

SHELL = {"command": ["sh", "main.sh"]}
LOOKS = b"""
echo "$GREETING from $0, $HOME, $(whoami)"
cat /etc/motd
for file in /usr/bin/python3 /root /etc/shadow; do [ -e $file ] && echo "sees $file"; done
echo no 2>/dev/null > /etc/motd || echo read-only
echo here > kept && cat kept
echo '{"step": 1, "loss": 2}' > "$GRIDLOOM_METRICS"
mkdir "$GRIDLOOM_OUTPUT/artifact" && cp /etc/motd "$GRIDLOOM_OUTPUT/artifact/"
"""


def system() -> dict[str, bytes]:
    """This host's shell and a few tools, with the C library that they need: paths as in a tar."""
    found: dict[str, bytes] = {}
    for name in ("sh", "cat", "whoami", "mkdir", "cp"):
        program = Path("/bin", name).resolve()
        found[f"bin/{name}"] = program.read_bytes()
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in re.findall(r"(/\S+) \(0x", told):
            found[path.lstrip("/")] = Path(path).read_bytes()
    return found


@pytest.fixture(scope="session", autouse=True)
def _podman() -> None:
    debian.podman()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Registry]:
    with served(Registry()) as it:
        settings = tmp_path / "registries.conf"
        settings.write_text(f'[[registry]]\nlocation = "{it.host}"\ninsecure = true\n')
        monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(settings))
        yield it


@pytest.fixture
def state(state: State, registry: Registry) -> State:
    """Its owner lets images be fetched from the tests' registry."""
    network = Network(registries=[registry.host])
    config.save(state, msgspec.structs.replace(config.load(state), network=network))
    return state


@pytest.fixture
def device(state: State) -> str:
    return nodes.machine(state).inventory.devices[0].uuid


@pytest.fixture
def script(market: Market) -> Input:
    return market.offer({"main.sh": LOOKS}, "script")


def image(registry: Registry, digest: str) -> Image:
    size = sum(len(data) for _, data in registry.blobs.values())
    return Image(reference=f"{registry.host}/team/tools@{digest}", bytes=size)


async def ended(market: Market, asked) -> tuple[str, dict[str, bytes]]:
    job = market.want(asked)
    status = await market.until(lambda: market.settled(job))
    logs = market.sent("log")[-1].files if market.sent("log") else {}
    market.unwant(job)
    assert status.exit is not None
    return f"{status.exit.code} {status.exit.why} {status.detail}".strip(), logs


async def test_a_job_runs_in_an_image_that_is_fetched_once(
    market: Market, node: State, device: str, registry: Registry, script: Input
):
    digest = registry.add(
        "team/tools:1",
        layer({**system(), "etc/motd": "old\n", "etc/shadow.bak": "x"}),
        layer({"etc/motd": "from the image\n", "etc/.wh.shadow.bak": ""}),
        env={"GREETING": "hello", "HOME": "/root", "PATH": "/bin"},
        index=True,
    )
    asked = {"devices": [device], "image": image(registry, digest), "parameters": SHELL}
    for _ in range(2):
        said, logs = await ended(market, spec(script, **asked))
        assert said.startswith("0 exited"), (said, logs)
        assert logs["stdout.log"].decode().splitlines() == [
            "hello from main.sh, /job, job",
            "from the image",
            "read-only",
            "here",
        ]
    assert sum("/blobs/" in path for path in registry.gets) == 3  # a configuration, two layers
    rootfs = node.environments / "images" / digest.removeprefix("sha256:") / "rootfs"
    assert not (rootfs / "etc/shadow.bak").exists()
    assert list((node.environments / "building").iterdir()) == []


async def test_a_jobs_sandbox_holds_in_an_image_too(
    market: Market, node: State, device: str, registry: Registry
):
    tries = b"""
    for path in / /usr /etc /opt/gridloom /opt/gridloom/host /sys /proc/sys/kernel; do
        (echo x > $path/x) 2>/dev/null && echo "wrote in $path"
    done
    cat /proc/self/status /proc/net/dev
    """
    digest = registry.add("team/tools:1", layer(system()))
    asked = {"devices": [device], "image": image(registry, digest), "parameters": SHELL}
    said, logs = await ended(market, spec(market.offer({"main.sh": tries}, "script"), **asked))
    assert said.startswith("0 exited"), (said, logs)
    seen = logs["stdout.log"].decode()
    assert "wrote in" not in seen
    assert re.search(r"^CapEff:\s+0+$", seen, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", seen, re.MULTILINE)
    assert re.findall(r"^\s*(\w+):\s+\d+ .*\d$", seen.partition("Inter-")[2], re.MULTILINE) == [
        "lo"
    ]


async def test_an_image_that_is_gone_is_no_fault_of_the_node(
    market: Market, node: State, device: str, registry: Registry, script: Input
):
    gone = image(registry, f"sha256:{'0' * 64}")
    said, _ = await ended(market, spec(script, devices=[device], image=gone, parameters=SHELL))
    assert "bad_input" in said
    assert "its image can't be fetched" in said


async def test_an_image_for_another_kind_of_machine_is_its_buyers_mistake(
    market: Market, node: State, device: str, registry: Registry, script: Input
):
    digest = registry.add("team/tools:1", layer(system()), architecture="arm64")
    asked = spec(script, devices=[device], image=image(registry, digest), parameters=SHELL)
    said, _ = await ended(market, asked)
    assert "environment" in said
    assert "its image is for linux on arm64" in said


async def test_a_layer_that_is_not_what_its_digest_names_is_refused(
    market: Market, node: State, device: str, registry: Registry, script: Input
):
    digest = registry.add("team/tools:1", layer({"etc/motd": "honest\n"}))
    other = layer({"etc/motd": "forged\n"})
    for key, (kind, data) in registry.blobs.items():
        if kind.endswith(".tar"):
            assert len(data) == len(other)
            registry.blobs[key] = (kind, other)
    asked = spec(script, devices=[device], image=image(registry, digest), parameters=SHELL)
    said, _ = await ended(market, asked)
    assert "its image can't be fetched" in said


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("ghcr.io/team/tools@sha256:{digest}", "lets no images be fetched from ghcr.io"),
        ("{host}/team/tools:latest", "names no image by its digest"),
    ],
)
def test_what_the_owner_does_not_allow_is_refused(
    market: Market, state: State, device: str, registry: Registry, script: Input, reference, why
):
    named = Image(reference=reference.format(digest="0" * 64, host=registry.host), bytes=1)
    asked = spec(script, devices=[device], image=named, parameters=SHELL)
    with pytest.raises(orders.SpecRefused, match=re.escape(why)):
        orders.check(asked, nodes.machine(state), ())


def test_an_image_is_for_scripts_alone(market: Market, state: State, device: str, script: Input):
    named = Image(reference=f"ghcr.io/team/tools@sha256:{'0' * 64}", bytes=1)
    asked = spec(script, devices=[device], image=named, recipe="prompt", parameters={})
    with pytest.raises(orders.SpecRefused, match="for a script alone"):
        orders.check(asked, nodes.machine(state), ())


def test_whatever_lies_where_a_sandbox_mounts_makes_way(tmp_path: Path):
    archive = tmp_path / "image.tar"
    archive.write_bytes(
        layer(
            {"etc/hosts": "1.2.3.4 market\n", "opt/gridloom": "a file", "bin/run": "#!/bin/sh\n"},
            links={"job": "/", "proc": "nowhere", "etc/passwd": "/etc/hosts", "lib": "usr/lib"},
        )
    )
    assert unpack.main(str(archive), str(tmp_path / "rootfs")) == 0
    rootfs = tmp_path / "rootfs"
    for path in unpack.MOUNTS:
        assert (rootfs / path).is_dir()
        assert not (rootfs / path).is_symlink()
    for path in unpack.FILES:
        assert (rootfs / path).is_file()
        assert not (rootfs / path).is_symlink()
    assert os.readlink(rootfs / "lib") == "usr/lib"
    assert (rootfs / "bin/run").stat().st_mode & 0o777 == 0o755
    assert (rootfs / "etc/hosts").stat().st_mode & 0o777 == 0o644


def test_an_archive_that_leads_out_is_refused(tmp_path: Path):
    archive = tmp_path / "image.tar"
    archive.write_bytes(layer({"a/../../out": "x"}))
    said = unpack.main(str(archive), str(tmp_path / "rootfs"))
    assert "leads out of it" in str(said)
    assert not (tmp_path / "out").exists()


async def test_two_jobs_wait_for_one_image(
    market: Market, node: State, device: str, registry: Registry, script: Input
):
    digest = registry.add("team/tools:1", layer(system()))
    wanted = image(registry, digest)
    daemon = nodes.daemon(node)
    found = await asyncio.gather(*(daemon._tools.images.get(wanted, print) for _ in range(2)))
    assert found[0] == found[1]
    assert sum("/blobs/" in path for path in registry.gets) == 2
