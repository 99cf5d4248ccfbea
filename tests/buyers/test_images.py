"""Container images: a name becomes a digest before anybody pays, and jobs run where it is taken."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from django.urls import reverse

from agent import protocol
from buyers import images, services
from buyers.own_models import ContainerImage
from buyers.registry import Reference
from marketplace.core import specs
from marketplace.core.errors import Conflict, Invalid, Unavailable
from marketplace.core.money import MICRO
from scheduler import assignments, quoting
from tests import world
from tests.buyers import folders
from tests.registry import Registry, layer, served

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]

WANTED = {
    "recipe": "script", "script": "mine", "budget": "5", "memory_gib": 1, "hours": 1,
    "parameters": {"command": ["sh", "main.sh"]},
}  # fmt: skip
LAYERS = (layer({"etc/motd": "hello\n"}), layer({"etc/more": "and more\n"}))


@pytest.fixture
def remote(settings) -> Iterator[Registry]:
    with served(Registry()) as it:
        settings.IMAGE_REGISTRIES = {it.host: f"http://{it.host}"}
        yield it


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now, wallet=100 * MICRO)


@pytest.fixture
def ask(org, now, remote):
    """A request for a job in an image of the registry, as `resolved` leaves it."""
    folders.upload(org, "mine", {"main.sh": b"", "requirements.txt": b"numpy"}, now=now)

    def ask(name: str = "team/tools:1", **changes):
        asked = specs.parse({**WANTED, "image": f"{remote.host}/{name}", **changes})
        return images.resolved(asked, now=now)

    return ask


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("asks", [False, True])
def test_a_tag_becomes_the_digest_that_it_names_now(ask, remote, listed, asks):
    digest = remote.add("team/tools:1", *LAYERS, index=listed)
    remote.asks = asks
    found = ask()
    assert found.image == f"{remote.host}/team/tools@{digest}"
    assert found.packages == "none"  # whatever its project lists: the image has it
    image = ContainerImage.objects.get()
    assert image.bytes == sum(map(len, LAYERS))
    assert [layer["bytes"] for layer in image.layers] == [*map(len, LAYERS)]
    gets = len(remote.gets)
    assert ask() == found
    assert len(remote.gets) - gets <= (3 if asks else 1)  # its digest alone
    remote.add("team/tools:1", LAYERS[0])
    assert ask().image != found.image
    remote.is_away = True
    assert ask(f"team/tools@{digest}") == found  # what is known is not asked for again


def test_what_is_no_image_for_everybody_and_our_machines_is_refused(ask, remote):
    remote.add("team/tools:arm", *LAYERS, index=True, architecture="arm64")
    remote.add("team/tools:arm1", *LAYERS, architecture="arm64")
    remote.add("team/tools:many", *LAYERS * 200)
    for name, why in [
        ("team/tools:arm", "no image for Linux on amd64"),
        ("team/tools:arm1", "is for linux on arm64, not for Linux on amd64"),
        ("team/tools:many", "has 400 layers of"),
        ("a" * 200, "at most 200 characters"),
        ("team/tools:2", "no image 2 that everybody may fetch"),
        (f"team/tools@sha256:{'0' * 64}", "that everybody may fetch"),
        ("Team/tools", "an image is named like"),
        ("team/tools@sha256:12", "an image is named like"),
    ]:
        with pytest.raises(Invalid, match=why) as refused:
            ask(name)
        assert refused.value.field == "image"
    remote.is_away = True
    with pytest.raises(Unavailable, match="answers with HTTP 503"):
        ask()


def test_another_registry_than_the_markets_is_not_asked(ask, remote):
    with pytest.raises(Invalid, match="no images are taken from 10.0.0.1:5000, but from 127"):
        images.resolved(specs.parse({**WANTED, "image": "10.0.0.1:5000/a/b"}), now=None)
    assert remote.gets == []


def test_names_are_read_as_docker_reads_them(settings):
    settings.IMAGE_REGISTRIES = {"docker.io": "https://registry-1.docker.io", "ghcr.io": "x"}
    for text, found in {
        "debian": ("docker.io", "library/debian", "latest"),
        "pytorch/pytorch:2.8.0": ("docker.io", "pytorch/pytorch", "2.8.0"),
        "docker.io/library/debian:12": ("docker.io", "library/debian", "12"),
        "ghcr.io/a/b/c": ("ghcr.io", "a/b/c", "latest"),
    }.items():
        read = Reference.parse(text)
        assert (read.registry, read.repository, read.tag) == found


def test_a_forged_answer_is_no_answer(ask, remote):
    digest = remote.add("team/tools:1", *LAYERS)
    kind, data = remote.blobs[digest]
    remote.blobs[digest] = (kind, data + b" ")
    with pytest.raises(Unavailable, match="sends another image than"):
        ask(f"team/tools@{digest}")


def test_a_token_that_is_not_given_just_now_is_no_missing_image(ask, remote):
    remote.add("team/tools:1", *LAYERS)
    remote.asks, remote.token = True, (503, b"")
    with pytest.raises(Unavailable, match="gives no token"):
        ask()
    for said in (b'{"token": "caf\xc3\xa9"}', b'{"token": [1]}', b"[" * 100_000):
        remote.token = (200, said)
        with pytest.raises(Invalid, match="that everybody may fetch"):
            ask()
    remote.token = (200, b'{"token": "anybody", "issued": 1.5, "scopes": []}')
    assert ask().image


def test_an_image_that_describes_itself_without_end_is_no_answer(ask, remote):
    remote.add("team/tools:1", *LAYERS, more={"x": "DEEP"})
    for digest, (kind, data) in list(remote.blobs.items()):
        if b'"DEEP"' in data:
            deep = data.replace(b'"DEEP"', b"[" * 100_000 + b"]" * 100_000)
            remote.blobs[f"sha256:{hashlib.sha256(deep).hexdigest()}"] = (kind, deep)
            manifest, said = remote.blobs[remote.tags["team/tools:1"]]
            said = said.replace(
                digest.encode(), f"sha256:{hashlib.sha256(deep).hexdigest()}".encode()
            )
            remote.tags["team/tools:1"] = f"sha256:{hashlib.sha256(said).hexdigest()}"
            remote.blobs[remote.tags["team/tools:1"]] = (manifest, said)
    with pytest.raises(Unavailable, match="makes no sense"):
        ask()


def test_a_registry_that_names_no_digests_is_read(ask, remote):
    digest = remote.add("team/tools:1", *LAYERS)
    remote.names_digests = False
    assert ask().image.endswith(digest)


def test_an_image_over_the_limit_is_refused(ask, remote, settings):
    remote.add("team/tools:1", *LAYERS)
    settings.POLICY = replace(settings.POLICY, image_bytes=1000)
    with pytest.raises(Invalid, match="the most are 256 of 0 MiB"):
        ask()


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.in-toto+json",
    ],
)
def test_layers_that_lie_elsewhere_or_are_none_are_refused(ask, remote, kind):
    remote.add("team/tools:1", *LAYERS, kind=kind)
    with pytest.raises(Invalid, match="can't be fetched from its registry"):
        ask()


@pytest.mark.parametrize(
    ("told", "into"), [(b'"size": ', b'"size": -'), (b'"sha256:', b'"sha512:'), (b"{", b"[")]
)
def test_a_manifest_that_makes_no_sense_is_no_answer(ask, remote, told, into):
    kind, data = remote.blobs[remote.add("team/tools:1", *LAYERS)]
    strange = data.replace(told, into, 1)
    remote.tags["team/tools:1"] = f"sha256:{hashlib.sha256(strange).hexdigest()}"
    remote.blobs[remote.tags["team/tools:1"]] = (kind, strange)
    with pytest.raises(Unavailable, match="makes no sense"):
        ask()


def test_what_an_image_sets_is_kept_but_for_its_ways_out(ask, remote):
    env = {"PATH": "/bin", "http_proxy": "http://x", "HTTPS_PROXY": "x", "no-name": "x", "A": ""}
    remote.add("team/tools:1", *LAYERS, env=env)
    ask()
    assert ContainerImage.objects.get().env == {"PATH": "/bin", "A": ""}
    remote.add("team/tools:1", *LAYERS, env={"A": "x" * 2**16})
    with pytest.raises(Invalid, match="more than 16 KiB of environment variables"):
        ask()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"recipe": "lora"}, "an image is for script"),
        ({"environment": "f" * 64}, "leave out environment and packages"),
        ({"packages": "f" * 64}, "leave out environment and packages"),
    ],
)
def test_an_image_goes_with_nothing_else_to_run_in(ask, remote, changes, why):
    remote.add("team/tools:1", *LAYERS)
    with pytest.raises(Invalid, match=why):
        ask(**changes)


def test_what_was_not_looked_at_is_not_planned(ask, org, remote, now):
    asked = specs.parse({**WANTED, "image": f"{remote.host}/team/tools:1"})
    with pytest.raises(Invalid, match="ask for a quote first"):
        services.plan(org, asked, now=now)


def test_only_nodes_that_take_from_its_registry_are_offered_and_told(ask, org, remote, now):
    remote.add("team/tools:1", *LAYERS)
    supplier = world.org("Supplier", now=now)
    world.listening(now)
    asked = ask()
    elsewhere = world.agent(supplier, now=now)
    (option,) = quoting.quote(org, asked, now=now).options
    assert option["why"] == f"no images from {remote.host} are run there"
    elsewhere.node.offers.all().delete()
    there = world.agent(supplier, now=now, registries=[remote.host])
    quote = quoting.quote(org, asked, now=now)
    (option,) = quote.options
    assert not option["why"]
    assert option["environment"] == ContainerImage.objects.get().sha256
    plan = services.plan(org, asked, now=now)
    assert plan.bytes_in >= plan.image.bytes

    job = world.job(org, now=now, image=plan.image, script=plan.script)
    share = world.lease(job, there, now=now).assignments.get()
    sent = protocol.decode(bytes(share.spec), protocol.AssignmentSpec)
    assert sent.image.reference == plan.image.reference
    assert sent.image.bytes == plan.image.bytes
    assert [len(data) for data in LAYERS] == [layer.bytes for layer in sent.image.layers]


@pytest.mark.parametrize("asks", [False, True])
def test_its_node_is_told_where_the_layers_are(ask, org, remote, now, asks):
    remote.add("team/tools:1", *LAYERS, index=True)
    remote.asks = asks
    there = world.agent(world.org("Supplier", now=now), now=now, registries=[remote.host])
    plan = services.plan(org, ask(), now=now)
    job = world.job(org, now=now, image=plan.image, script=plan.script)
    share = world.lease(job, there, now=now).assignments.get()
    given = assignments.layers(there.node, share.pk)
    for entry in plan.image.layers:
        headers = {"authorization": given.authorization} if asks else {}
        answer = httpx.get(given.urls[entry["sha256"]], headers=headers)
        assert answer.content in LAYERS
    remote.is_away = True
    with pytest.raises(Unavailable):
        assignments.layers(there.node, share.pk)
    assert assignments.input_urls(there.node, share.pk).keys() == {
        entry["sha256"] for entry in plan.script.manifest
    }
    remote.is_away = False
    remote.blobs.clear()
    with pytest.raises(Conflict, match="can't be fetched any more"):
        assignments.layers(there.node, share.pk)


def test_a_node_needs_room_for_the_image(ask, org, remote, now):
    remote.add("team/tools:1", *LAYERS)
    world.listening(now)
    there = world.agent(world.org("Supplier", now=now), now=now, registries=[remote.host])
    asked = ask(disk_gib=1)
    there.node.disk_bytes = 2**30 + ContainerImage.objects.get().room - 1
    there.node.save()
    (option,) = quoting.quote(org, asked, now=now).options
    assert "of disk, it has less" in option["why"]
    there.node.disk_bytes += 1
    there.node.save()
    (option,) = quoting.quote(org, asked, now=now).options
    assert not option["why"]


def test_its_page_names_the_image(member, ran):
    ran.job.image = ContainerImage.objects.create(
        reference=f"ghcr.io/team/tools@sha256:{'a' * 64}", registry="ghcr.io", bytes=5,
        created_at=ran.job.created_at,
    )  # fmt: skip
    ran.job.save()
    page = member.get(reverse("job", args=[ran.job.pk])).content.decode()
    assert ran.job.image.reference in page
