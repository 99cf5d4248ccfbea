"""What jobs leave behind: committed whole, once, and by nobody else."""

import hashlib
import urllib.request
from datetime import timedelta

import msgspec
import pytest

from agent import protocol
from buyers.models import Artifact, Checkpoint, Job
from marketplace import storage
from marketplace.core.errors import Conflict, Invalid, Missing
from marketplace.core.money import MICRO
from scheduler import specs, uploads
from tests import world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]


@pytest.fixture
def node(now):
    return world.agent(world.org(now=now), now=now)


@pytest.fixture
def share(node, now):
    buyer = world.org(now=now, wallet=100 * MICRO)
    lease = world.lease(world.job(buyer, now=now), node, now=now)
    node.says(world.status(lease.assignments.get(), "running"), now=now)
    return lease.assignments.select_related("lease__job").get()


def request(share, body=b"weights", *, path="model.safetensors", step=5, kind="checkpoint"):
    part = protocol.Part(bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    file = protocol.FileToSend(path=path, bytes=part.bytes, sha256=part.sha256, parts=[part])
    return protocol.UploadRequest(epoch=share.lease.epoch, kind=kind, step=step, files=[file])


def send(put, body):
    sent = urllib.request.Request(put.url, data=body, headers=put.headers, method="PUT")
    with urllib.request.urlopen(sent, timeout=10) as answer:
        return answer.status


def committed(asked, **changes):
    files = [
        protocol.SentFile(path=file.path, bytes=file.bytes, sha256=file.sha256)
        for file in asked.files
    ]
    fields = {"epoch": asked.epoch, "kind": asked.kind, "step": asked.step, "files": files}
    return protocol.CommitRequest(**{**fields, **changes})


def upload(node, share, now, body=b"weights", **changes):
    asked = request(share, body, **changes)
    (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
    send(granted.puts[0], body)
    return uploads.commit(node.node, share.pk, committed(asked), now=now)


def test_a_checkpoint_is_there_once_it_is_committed(node, share, now):
    upload(node, share, now)
    kept = Checkpoint.objects.get()
    (entry,) = kept.manifest
    assert b"".join(storage.read(storage.file_key(kept.prefix, entry["sha256"]))) == b"weights"


def test_committing_twice_is_committing_once(node, share, now):
    asked = request(share)
    (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
    send(granted.puts[0], b"weights")
    first = uploads.commit(node.node, share.pk, committed(asked), now=now)
    assert uploads.commit(node.node, share.pk, committed(asked), now=now) == first
    assert Checkpoint.objects.count() == 1


def test_what_is_committed_can_not_be_written_over(node, share, now):
    other = request(share, b"poison!")
    (early,) = uploads.grant(node.node, share.pk, other, now=now).files
    upload(node, share, now)
    send(early.puts[0], b"poison!")
    kept = Checkpoint.objects.get()
    (entry,) = kept.manifest
    assert b"".join(storage.read(storage.file_key(kept.prefix, entry["sha256"]))) == b"weights"


def test_what_never_arrived_can_not_be_committed(node, share, now):
    asked = request(share)
    uploads.grant(node.node, share.pk, asked, now=now)
    with pytest.raises(Conflict, match="has not arrived"):
        uploads.commit(node.node, share.pk, committed(asked), now=now)
    assert not Checkpoint.objects.exists()


def test_a_lease_that_is_over_can_not_commit(node, share, now):
    asked = request(share)
    (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
    send(granted.puts[0], b"weights")
    gone = world.status(share, "gone", exit=world.exited(1), settled=True)
    node.says(gone, now=now)
    with pytest.raises(Conflict, match="over"):
        uploads.commit(node.node, share.pk, committed(asked), now=now)
    with pytest.raises(Conflict, match="over"):
        uploads.grant(node.node, share.pk, asked, now=now)


def test_an_older_epoch_can_not_write(node, share, now):
    stale = protocol.UploadRequest(
        epoch=share.lease.epoch - 1, kind="checkpoint", step=1, files=request(share).files
    )
    with pytest.raises(Conflict):
        uploads.grant(node.node, share.pk, stale, now=now)


def test_another_node_can_not_write_for_it(share, now):
    stranger = world.agent(world.org(now=now), now=now)
    with pytest.raises(Missing):
        uploads.grant(stranger.node, share.pk, request(share), now=now)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\\b", "a//b"])
def test_a_path_out_of_its_folder_is_refused(node, share, now, path):
    with pytest.raises(Invalid):
        uploads.grant(node.node, share.pk, request(share, path=path), now=now)


def test_parts_that_do_not_add_up_are_refused(node, share, now):
    (file,) = request(share).files
    wrong = protocol.FileToSend(
        path=file.path, bytes=file.bytes + 1, sha256=file.sha256, parts=file.parts
    )
    asked = protocol.UploadRequest(
        epoch=share.lease.epoch, kind="checkpoint", step=1, files=[wrong]
    )
    with pytest.raises(Invalid, match="parts"):
        uploads.grant(node.node, share.pk, asked, now=now)


def test_only_the_furthest_few_are_kept(node, share, now):
    for step in (5, 10, 15):
        upload(node, share, now, b"weights %d" % step, step=step)
    kept = Checkpoint.objects.filter(deleted_at=None)
    assert sorted(checkpoint.step for checkpoint in kept) == [10, 15]
    furthest = specs.furthest(share.lease.job)
    assert furthest is not None
    assert furthest.step == 15


def test_a_checkpoint_counts_from_when_it_was_written_but_never_ahead_of_the_meter(
    node, share, now
):
    node.says(world.status(share, "running", running_ms=20_000), now=now + timedelta(seconds=20))
    for step, told, kept in ((5, 12_000, 12_000), (6, 10**9, 20_000), (7, None, 20_000)):
        asked = request(share, b"at %d" % step, step=step)
        (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
        send(granted.puts[0], b"at %d" % step)
        wanted = committed(asked, running_ms=told, place="work/out")
        uploads.commit(node.node, share.pk, wanted, now=now)
        share.refresh_from_db()
        assert share.saved_ms == kept
    assert {each.place for each in Checkpoint.objects.all()} == {"work/out"}


@pytest.mark.parametrize("place", ["../x", "inputs/base"])
def test_a_checkpoint_never_lay_outside_of_its_job(node, share, now, place):
    with pytest.raises(Invalid, match="outside"):
        uploads.commit(node.node, share.pk, committed(request(share), place=place), now=now)


def test_a_checkpoint_that_no_other_node_has_booked_the_room_for_is_refused(node, share, now):
    Job.objects.update(disk_bytes=5)
    asked = committed(request(share), place="output/checkpoint-5")
    with pytest.raises(Invalid, match="books"):
        uploads.commit(node.node, share.pk, asked, now=now)


def test_the_last_good_one_stays_until_a_new_attempt_has_left_enough(node, share, now):
    old = upload(node, share, now, b"old", step=4)
    Checkpoint.objects.update(epoch=share.lease.epoch - 1, proven_at=now)
    assert old
    left = []
    for step in (5, 6, 7):
        upload(node, share, now, b"weights %d" % step, step=step)
        left.append(sorted(c.step for c in Checkpoint.objects.filter(deleted_at=None)))
    assert left == [[4, 5], [4, 5, 6], [6, 7]]


def test_what_is_removed_does_not_count_against_the_quota(node, share, now):
    for step in range(5):
        upload(node, share, now, b"weights %d" % step, step=step)
    share.refresh_from_db()
    assert share.granted_bytes == 2 * len(b"weights 0")


def test_a_file_of_many_paths_counts_once_when_it_is_removed(node, share, now):
    for step in range(5):
        asked = request(share, b"weights %d" % step, step=step)
        (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
        send(granted.puts[0], b"weights %d" % step)
        (file,) = committed(asked).files
        twins = [msgspec.structs.replace(file, path=f"twin-{number}") for number in range(9)]
        uploads.commit(node.node, share.pk, committed(asked, files=twins), now=now)
    share.refresh_from_db()
    assert share.granted_bytes == 2 * len(b"weights 0")


def test_no_save_is_believed_to_take_for_ever(node, share, now):
    asked = request(share)
    (granted,) = uploads.grant(node.node, share.pk, asked, now=now).files
    send(granted.puts[0], b"weights")
    uploads.commit(node.node, share.pk, committed(asked, seconds=1e308), now=now)
    share.lease.job.refresh_from_db()
    assert share.lease.job.save_s == 600


def test_an_artifact_tells_what_it_was_made_of(node, share, now):
    upload(node, share, now, kind="artifact", step=0)
    artifact = Artifact.objects.get()
    assert artifact.lineage["recipe"] == "script"
    assert artifact.org == share.lease.job.org
