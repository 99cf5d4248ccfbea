"""Public bases: published once, the same for everybody."""

import pytest

from buyers import bases
from buyers.models import Artifact
from marketplace import storage
from marketplace.core.errors import Conflict, Invalid
from tests import tiny_base, world

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]


def publish(folder, now, name="tiny"):
    return bases.publish(folder, name=name, licence="apache-2.0", shape={}, now=now)


def test_a_base_is_usable_by_every_org_and_stored_as_it_was(tmp_path, now):
    folder = tiny_base.write(tmp_path / "tiny")
    base = publish(folder, now)
    assert base.committed_at
    assert base.public
    assert base.licence == "apache-2.0"
    assert base in Artifact.objects.usable_by(world.org(now=now))
    for entry in base.manifest:
        stored = b"".join(storage.read(storage.file_key(base.prefix, entry["sha256"])))
        assert stored == (folder / entry["path"]).read_bytes()


def test_publishing_again_sends_nothing(tmp_path, now, monkeypatch):
    folder = tiny_base.write(tmp_path / "tiny")
    base = publish(folder, now)
    monkeypatch.setattr(storage, "put", lambda *args: pytest.fail("it was sent again"))
    assert publish(folder, now.replace(year=2027)) == base
    assert Artifact.objects.count() == 1


def test_what_was_cut_off_is_gone_on_with(tmp_path, now, monkeypatch):
    folder = tiny_base.write(tmp_path / "tiny")
    sent, put = [], storage.put

    def fail_at_the_second(key, body):
        if len(sent) == 1:
            raise ConnectionError
        sent.append(key)
        put(key, body)

    monkeypatch.setattr(storage, "put", fail_at_the_second)
    with pytest.raises(ConnectionError):
        publish(folder, now)
    assert not Artifact.objects.usable_by(world.org(now=now)).exists()

    rest = []
    monkeypatch.setattr(storage, "put", lambda key, body: (rest.append(key), put(key, body)))
    assert publish(folder, now).committed_at
    assert not set(rest) & set(sent)


def test_another_model_under_a_taken_name_is_refused(tmp_path, now):
    publish(tiny_base.write(tmp_path / "one"), now)
    with pytest.raises(Conflict, match="already published"):
        publish(tiny_base.write(tmp_path / "two", seed=1), now)


def test_an_empty_folder_is_refused(tmp_path, now):
    with pytest.raises(Invalid, match="no files"):
        publish(tmp_path, now)
