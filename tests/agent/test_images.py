"""Jobs in container images: fetched by digest, laid out once, and walled in as every job is."""

import asyncio
import os
import re
import sys
from collections.abc import Iterator

import msgspec
import pytest

from agent import config, images, orders
from agent.config import Network, State
from agent.protocol import File, Image, Input, LayerUrls, sha256_hex
from agent.sandbox import workspace
from agent.transfer import Source
from tests.agent import node as nodes
from tests.agent.conftest import spec
from tests.agent.market import Market
from tests.agent.sandbox.test_image import system
from tests.registry import Registry, layer, served

TOOLS = ("sh", "cat", "whoami", "mkdir", "cp")
ONE = [File(path="000", bytes=1, sha256="0" * 64)]
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


@pytest.fixture
def registry() -> Iterator[Registry]:
    with served(Registry()) as it:
        it.asks = it.sends_on = True
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


@pytest.fixture
def put(market: Market, registry: Registry):
    """Makes an image of these layers, and the market know where they lie."""

    def put(*layers: bytes, env: dict[str, str] | None = None) -> Image:
        digest = registry.add("team/tools:1", *layers, env=env)
        files = [
            File(path=f"{at:03}", bytes=len(data), sha256=sha256_hex(data))
            for at, data in enumerate(layers)
        ]
        at = f"http://{registry.host}/v2/team/tools/blobs/sha256:"
        urls = {file.sha256: at + file.sha256 for file in files}
        market.layers = LayerUrls(urls=urls, authorization="Bearer anybody")
        reference = f"{registry.host}/team/tools@{digest}"
        return Image(reference=reference, layers=files, env=env or {})

    return put


async def ended(market: Market, asked) -> tuple[str, dict[str, bytes]]:
    job = market.want(asked)
    status = await market.until(lambda: market.settled(job))
    logs = market.sent("log")[-1].files if market.sent("log") else {}
    market.unwant(job)
    assert status.exit is not None
    return f"{status.exit.code} {status.exit.why} {status.detail}".strip(), logs


async def test_a_job_runs_in_an_image_that_is_fetched_once(
    market: Market, node: State, device: str, registry: Registry, script: Input, put
):
    wanted = put(
        layer({**system(*TOOLS), "etc/motd": "old\n", "etc/shadow.bak": "x"}, packed=True),
        layer({"etc/motd": "from the image\n", "etc/.wh.shadow.bak": ""}),
        env={"GREETING": "hello", "HOME": "/root", "PATH": "/bin"},
    )
    asked = {"devices": [device], "image": wanted, "parameters": SHELL}
    for _ in range(2):
        said, logs = await ended(market, spec(script, **asked))
        assert said.startswith("0 exited"), (said, logs)
        assert logs["stdout.log"].decode().splitlines() == [
            "hello from main.sh, /job, job",
            "from the image",
            "read-only",
            "here",
        ]
    assert sum("/blobs/" in path for path in registry.gets) == 2
    rootfs = node.environments / "images" / wanted.digest
    assert (rootfs / "etc/motd").read_text() == "from the image\n"
    assert not (rootfs / "etc/shadow.bak").exists()
    assert list((node.environments / "building").iterdir()) == []


async def test_a_jobs_sandbox_holds_in_an_image_too(market: Market, node: State, device: str, put):
    tries = b"""
    for path in / /usr /etc /opt/gridloom /opt/gridloom/driver /sys /proc/sys/kernel /job/..; do
        (echo x > $path/x) 2>/dev/null && echo "wrote in $path"
    done
    chroot . /bin/true && echo "changed its root"
    cat /proc/1/root/etc/hostname /proc/1/environ && echo "looked out"
    cat /proc/self/status /proc/net/dev
    """
    asked = {
        "devices": [device],
        "image": put(layer(system(*TOOLS, "chroot"))),
        "parameters": SHELL,
    }
    said, logs = await ended(market, spec(market.offer({"main.sh": tries}, "script"), **asked))
    assert said.startswith("0 exited"), (said, logs)
    seen = logs["stdout.log"].decode()
    for word in ("wrote in", "changed its root", "looked out"):
        assert word not in seen
    for mask in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{mask}:\s+0+$", seen, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", seen, re.MULTILINE)
    assert re.findall(r"^\s*(\w+):\s+\d+ .*\d$", seen.partition("Inter-")[2], re.MULTILINE) == [
        "lo"
    ]
    assert "Operation not permitted" in logs["stderr.log"].decode()


async def test_nothing_of_an_image_is_run_but_by_its_job(
    market: Market, node: State, device: str, put
):
    """Our init is no program of the image's: neither its loader nor its Python are read by it."""
    files = {**system(*TOOLS), "etc/ld.so.preload": "/trap.so\n"}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for top in (sys.base_prefix.lstrip("/"), "usr", "usr/local"):
        for name in ("warnings", "termios", "encodings/__init__", "os"):
            files[f"{top}/lib/{version}/{name}.py"] = "open('/job/sprung', 'w')"
    look = market.offer({"main.sh": b"[ -e /job/sprung ] && echo sprung"}, "script")
    asked = spec(look, devices=[device], image=put(layer(files)), parameters=SHELL)
    said, logs = await ended(market, asked)
    assert said.startswith("1 exited"), (said, logs)
    # One program of the image's was started: the job's shell.
    assert logs["stderr.log"].count(b"/etc/ld.so.preload") == 1
    assert "stdout.log" not in logs


async def test_secrets_and_ways_out_are_not_the_images_to_set(
    market: Market, node: State, device: str, put
):
    market.secrets = {"TOKEN": "the buyer's"}
    wanted = put(layer(system(*TOOLS)), env={"TOKEN": "the image's", "KEPT": "yes", "TMPDIR": "/x"})
    look = market.offer({"main.sh": b'echo "$TOKEN $KEPT $TMPDIR"'}, "script")
    asked = spec(look, devices=[device], image=wanted, parameters=SHELL, secrets=["TOKEN"])
    said, logs = await ended(market, asked)
    assert said.startswith("0 exited"), (said, logs)
    assert logs["stdout.log"].decode() == "[TOKEN] yes /tmp\n"


async def test_a_layer_that_is_gone_is_no_fault_of_the_node(
    market: Market, node: State, device: str, registry: Registry, script: Input, put
):
    wanted = put(layer(system(*TOOLS)))
    registry.blobs.clear()
    registry.sends_on = False
    said, _ = await ended(market, spec(script, devices=[device], image=wanted, parameters=SHELL))
    assert "bad_input 000 can't be fetched" in said


async def test_an_image_that_no_one_gives_out_any_more_is_no_fault_of_the_node(
    market: Market, node: State, device: str, script: Input, put
):
    wanted = put(layer(system(*TOOLS)))
    market.layers = None
    said, _ = await ended(market, spec(script, devices=[device], image=wanted, parameters=SHELL))
    assert "refused the market doesn't give its inputs out: its image is gone" in said


async def test_a_layer_that_is_not_what_its_digest_names_is_refused(
    market: Market, node: State, device: str, registry: Registry, script: Input, put
):
    wanted = put(layer({"etc/motd": "honest\n"}))
    forged = layer({"etc/motd": "forged\n"})
    digest = f"sha256:{wanted.layers[0].sha256}"
    assert len(forged) == wanted.layers[0].bytes
    registry.blobs[digest] = (registry.blobs[digest][0], forged)
    said, _ = await ended(market, spec(script, devices=[device], image=wanted, parameters=SHELL))
    assert "bad_input 000 is not what its manifest says" in said


async def test_a_layer_that_is_no_archive_is_its_makers_mistake(
    market: Market, node: State, device: str, script: Input, put
):
    wanted = put(b"no archive")
    said, _ = await ended(market, spec(script, devices=[device], image=wanted, parameters=SHELL))
    assert "environment its image could not be laid out" in said
    assert "its files can't be laid out" in said


async def test_an_image_whose_registry_is_slow_is_no_fault_of_the_node(
    market: Market, node: State, device: str, registry: Registry, script: Input, put
):
    wanted = put(layer(system(*TOOLS)))
    registry.is_away, registry.sends_on = True, False
    asked = spec(script, devices=[device], image=wanted, parameters=SHELL, start_timeout_s=3.0)
    said, _ = await ended(market, asked)
    assert "bad_input its image took longer than" in said


async def test_room_for_a_job_is_made_of_images_as_well(
    market: Market, node: State, device: str, put, monkeypatch
):
    """What was laid out for others long ago goes before a job is refused for want of room."""
    quick = market.offer({"main.sh": b"exit 0"}, "script")
    asked = spec(quick, devices=[device], image=put(layer(system(*TOOLS))), parameters=SHELL)
    said, _ = await ended(market, asked)
    assert said.startswith("0 exited"), said
    (laid,) = (node.environments / "images").iterdir()
    os.utime(laid, (0, 0))
    free = workspace.free_bytes
    monkeypatch.setattr(workspace, "free_bytes", lambda path: 0 if laid.exists() else free(path))
    said, _ = await ended(market, spec(quick, devices=[device], parameters=SHELL))
    assert said.startswith("0 exited"), said
    assert not laid.exists()


async def test_an_image_that_unpacks_without_end_fills_no_disk(
    market: Market, node: State, device: str, script: Input, put, monkeypatch
):
    monkeypatch.setattr(images.protocol, "image_room", lambda size: 2**20)
    wanted = put(layer({"zeros": bytes(64 * 2**20)}, packed=True))
    assert wanted.bytes < 2**17
    said, _ = await ended(market, spec(script, devices=[device], image=wanted, parameters=SHELL))
    assert "environment its image could not be laid out" in said
    assert list((node.environments / "building").iterdir()) == []


def test_an_image_that_the_disk_has_no_room_for_is_refused(
    market: Market, state: State, device: str, script: Input
):
    machine = nodes.machine(state)
    layers = [File(path="000", bytes=machine.inventory.disk_bytes // 6, sha256="0" * 64)]
    machine.inventory.registries.append("ghcr.io")
    named = Image(reference=f"ghcr.io/team/tools@sha256:{'0' * 64}", layers=layers)
    asked = spec(script, devices=[device], image=named, parameters=SHELL)
    with pytest.raises(orders.SpecRefused, match="which are not free here"):
        orders.check(asked, machine, ())


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
    named = Image(reference=reference.format(digest="0" * 64, host=registry.host), layers=ONE)
    asked = spec(script, devices=[device], image=named, parameters=SHELL)
    with pytest.raises(orders.SpecRefused, match=re.escape(why)):
        orders.check(asked, nodes.machine(state), ())


def test_an_image_is_for_scripts_alone(market: Market, state: State, device: str, script: Input):
    named = Image(reference=f"ghcr.io/team/tools@sha256:{'0' * 64}", layers=ONE)
    asked = spec(script, devices=[device], image=named, recipe="prompt", parameters={})
    with pytest.raises(orders.SpecRefused, match="for a script alone"):
        orders.check(asked, nodes.machine(state), ())


async def test_two_jobs_wait_for_one_image(
    market: Market, node: State, device: str, registry: Registry, put
):
    wanted = put(layer(system(*TOOLS)))

    class Urls:
        async def get(self, sha256: str) -> Source:
            return Source(market.layers.urls[sha256], market.layers.authorization)

        async def renew(self, stale: Source) -> None:
            raise AssertionError(stale)

    images = nodes.daemon(node)._tools.images
    found = await asyncio.gather(*(images.get(wanted, Urls(), print) for _ in range(2)))
    assert found[0] == found[1]
    assert sum("/blobs/" in path for path in registry.gets) == 1
