"""Bases from a hub: fetched once, checked, and only what can't run."""

import json
from dataclasses import replace

import pytest
from django.utils import timezone

from buyers import fetching, licences, references, services
from buyers.hub_models import Fetch, LicenceAcceptance
from buyers.models import Artifact
from marketplace import storage
from marketplace.core import specs
from marketplace.core.errors import Conflict, Invalid
from marketplace.core.money import MICRO
from scheduler import tasks
from tests import tiny_base, world
from tests.buyers import folders
from tests.buyers import hub as hubs
from tests.buyers.hub import Repository

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]

REPO = "makers/tiny"


@pytest.fixture
def hub(settings, tmp_path):
    with hubs.serving() as hub:
        settings.HUBS = {"huggingface": hub.url}
        settings.SCRATCH_DIR = tmp_path / "scratch"
        hub.repos[REPO] = Repository(hubs.model(tmp_path))
        yield hub


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now, wallet=100 * MICRO)


def ask(org, repo=REPO, *, revision="", token="", right="", hub=""):
    return fetching.ask(
        org, hub=hub, repo=repo, revision=revision, token=token, right=right,
        by=org.members.get(), now=timezone.now(),
    )  # fmt: skip


def fetched(org, repo=REPO, **more):
    made = ask(org, repo, **more)
    fetching.work(timezone.now)
    made.refresh_from_db()
    return made


def test_a_base_is_fetched_with_weights_settings_and_tokenizer_and_nothing_that_runs(
    hub, org, settings
):
    made = ask(org)
    tasks.fetch_bases()
    made.refresh_from_db()
    assert (made.state, made.detail, made.commit) == ("ready", "", hub.repos[REPO].commit)
    base = made.artifact
    assert [entry["path"] for entry in base.manifest] == [
        "LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    for entry in base.manifest:
        stored = b"".join(storage.read(storage.file_key(base.prefix, entry["sha256"])))
        assert stored == hub.repos[REPO].files[entry["path"]]
    assert base.licence == "apache-2.0"
    assert base.shape["layers"] == tiny_base.CONFIG["num_hidden_layers"]
    assert base.org is None, "what is open is everybody's"
    assert made.bytes_done == made.bytes_total == base.bytes
    assert not list(settings.SCRATCH_DIR.iterdir())


def test_the_same_commit_is_fetched_once_for_all_who_ask(hub, org, now):
    first = fetched(org)
    asked = len(hub.paths("/store/"))
    other = world.org("Other", now=now)
    assert first.artifact not in Artifact.objects.usable_by(other)
    second = fetched(other, revision=first.commit)
    assert second.artifact == first.artifact
    assert len(hub.paths("/store/")) == asked
    assert first.artifact in Artifact.objects.usable_by(other)


def test_a_branch_that_moved_is_another_base(hub, org, tmp_path):
    first = fetched(org)
    hub.repos[REPO].files["LICENSE"] = b"Apache 2\n"
    second = fetched(org)
    assert second.artifact != first.artifact
    assert references.base(org, REPO) == second.artifact
    assert references.base(org, f"{REPO}@{first.commit[:8]}") == first.artifact
    assert references.base(org, f"{REPO}@main") == second.artifact


def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub, org):
    hub.cut_after = 200_000
    made = fetched(org)
    assert made.state == "fetching"
    assert "broke off in model.safetensors" in made.detail
    assert 0 < made.failures < 3
    hub.cut_after = 0
    hub.asked.clear()
    fetching.work(timezone.now)
    made.refresh_from_db()
    assert made.state == "ready"
    (headers,) = [headers for path, headers in hub.asked if path.startswith("/store/")]
    assert headers["Range"] == "bytes=200000-"


def test_a_long_transfer_leaves_the_others_their_turn_and_goes_on(hub, org, settings, monkeypatch):
    from buyers import incoming

    settings.POLICY = replace(settings.POLICY, fetch_slice_s=-1)
    monkeypatch.setattr(incoming, "_TELL_S", 0.0)
    made = fetched(org)
    assert (made.state, made.failures, made.detail) == ("fetching", 0, "")
    assert made.bytes_done > 0
    settings.POLICY = replace(settings.POLICY, fetch_slice_s=600)
    fetching.work(timezone.now)
    made.refresh_from_db()
    assert made.state == "ready"


def test_what_was_received_of_a_fetch_that_ended_is_swept_away(hub, org, settings):
    hub.cut_after = 200_000
    made = fetched(org)
    assert [part.name for part in settings.SCRATCH_DIR.iterdir()] == [f"{made.pk}-3.part"]
    fetching.cancel(made, by=org.members.get(), now=timezone.now())
    fetching.work(timezone.now)
    assert not list(settings.SCRATCH_DIR.iterdir())


def test_an_org_may_not_fetch_without_end(hub, org, settings):
    first = fetched(org)
    settings.POLICY = replace(settings.POLICY, fetched_bytes=first.bytes_total + 1)
    hub.repos[REPO].files["LICENSE"] = b"Apache 2\n"
    assert "has fetched 0.0" in fetched(org).detail


def test_a_hub_that_is_away_is_waited_for_and_then_given_up(hub, org, settings):
    settings.POLICY = replace(settings.POLICY, fetch_attempts=2)
    hub.down = True
    made = fetched(org)
    assert (made.state, made.failures) == ("asked", 1)
    assert "HTTP 503" in made.detail
    fetching.work(timezone.now)
    fetching.work(timezone.now)
    made.refresh_from_db()
    assert made.state == "refused"
    assert "given up after 3 tries" in made.detail


def test_bytes_that_are_not_what_the_hub_says_are_never_kept(hub, org):
    data = hub.repos[REPO].files["model.safetensors"]
    hub.instead["model.safetensors"] = data[:-1] + bytes([data[-1] ^ 1])
    made = fetched(org)
    assert made.state == "fetching"
    assert "another hash" in made.detail
    assert not Artifact.objects.exists()


def test_a_token_opens_a_gated_base_for_its_org_alone_and_goes_only_to_the_hub(hub, org, now):
    hub.repos[REPO].gated = "manual"
    refused = fetched(org)
    assert refused.state == "refused"
    assert "behind a gate" in refused.detail
    made = fetched(org, token=hubs.TOKEN)
    assert made.state == "ready"
    assert made.token is None, "it is forgotten"
    assert made.artifact.org == org
    for path, headers in hub.asked:
        if path.startswith("/store/"):
            assert "Authorization" not in headers
    other = fetched(world.org("Other", now=now))
    assert other.state == "refused"


def test_a_token_is_not_readable_in_the_database(hub, org):
    assert hubs.TOKEN.encode() not in bytes(ask(org, token=hubs.TOKEN).token)


@pytest.mark.parametrize(
    ("repo", "revision", "why"),
    [
        ("makers/nothing", "", "if it is private, add it with a token"),
        (REPO, "v9", "no such revision"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub, org, repo, revision, why):
    made = fetched(org, repo, revision=revision)
    assert made.state == "refused"
    assert why in made.detail


def config(**changes):
    return json.dumps({**tiny_base.CONFIG, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config.json": config(architectures=["BertModel"])}, "not a causal language model"),
        ({"config.json": config(auto_map={"AutoModel": "x.py"})}, "needs code of its own"),
        ({"config.json": b"{"}, "config.json of makers/tiny can't be read"),
        ({"config.json": config(hidden_size=None)}, "no usable hidden_size"),
        ({"config.json": None}, "has no config.json"),
        ({"model.safetensors": None}, "only pytorch_model.bin, which could carry code"),
        ({"model.safetensors": b"\x80\x04" + bytes(100)}, "is no safetensors file"),
        ({"model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "model-1.safetensors"}}).encode()}, "model-1.safetensors is miss"),
        ({"model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "../x.safetensors"}}).encode()}, "is missing"),
    ],
)  # fmt: skip
def test_what_is_no_base_is_refused_before_its_weights_are_fetched(hub, org, changes, why):
    for path, data in changes.items():
        if data is None:
            del hub.repos[REPO].files[path]
        else:
            hub.repos[REPO].files[path] = data
    made = fetched(org)
    assert made.state == "refused"
    assert why in made.detail
    assert not Artifact.objects.exists()


def test_weights_in_pieces_are_taken_as_their_index_lists_them(hub, org):
    files = hub.repos[REPO].files
    files["model-1-of-1.safetensors"] = files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps(
        {"weight_map": {"a": "model-1-of-1.safetensors"}}
    ).encode()
    paths = [entry["path"] for entry in fetched(org).artifact.manifest]
    assert "model-1-of-1.safetensors" in paths
    assert "model.safetensors" not in paths


def test_one_that_is_too_large_is_refused_with_both_figures(hub, org, settings):
    settings.POLICY = replace(settings.POLICY, base_bytes=2**18)
    made = fetched(org)
    assert made.state == "refused"
    assert "GiB of weights; a base has at most 0.0002441 here" in made.detail


def test_a_base_without_a_licence_needs_the_orgs_word(hub, org):
    hub.repos[REPO].card = {}
    refused = fetched(org)
    assert refused.state == "refused"
    assert "names no licence" in refused.detail
    made = fetched(org, right="we wrote it ourselves")
    assert made.state == "ready"
    word = LicenceAcceptance.objects.get()
    assert (word.statement, word.by) == ("we wrote it ourselves", made.created_by)
    licences.require(org, made.artifact)


def test_a_licence_is_accepted_once_before_a_job_may_use_the_base(hub, org, now):
    base = fetched(org).artifact
    folders.upload(org, "pairs", folders.TRAINING, now=now)
    job = specs.parse({"recipe": "lora", "base": REPO, "dataset": "pairs", "budget": "5"})
    with pytest.raises(Invalid, match=r"has not accepted the licence of makers/tiny \(apache-2"):
        services.plan(org, job, now=now)
    by = org.members.get()
    with pytest.raises(Conflict, match="is apache-2.0, not 'mit'"):
        licences.accept(org, base, licence="mit", by=by, now=now)
    licences.accept(org, base, licence="apache-2.0", by=by, now=now)
    licences.accept(org, base, licence="apache-2.0", by=by, now=now)
    assert services.plan(org, job, now=now).base == base
    assert LicenceAcceptance.objects.count() == 1
    hub.repos[REPO].files["LICENSE"] = b"Apache, the next commit\n"
    licences.require(org, fetched(org).artifact)


def test_only_the_markets_own_hubs_are_asked(hub, org):
    with pytest.raises(Invalid, match="there is no hub 'http://10.0.0.1' here"):
        ask(org, hub="http://10.0.0.1")
    for repo in ("", "../../etc", "a/b/c", "http://x/y", "a b/c", "a/..", "@x/y"):
        with pytest.raises(Invalid, match="organisation/model"):
            ask(org, repo)
    for revision in ("../x", "a b", "?x=1"):
        with pytest.raises(Invalid, match="a revision is"):
            ask(org, revision=revision)


def test_wishes_under_way_are_few_and_each_once(hub, org, settings):
    settings.POLICY = replace(settings.POLICY, open_fetches=1)
    first = ask(org)
    assert ask(org) == first
    with pytest.raises(Conflict, match="is fetching 1 bases"):
        ask(org, "makers/other")
    fetching.cancel(first, by=org.members.get(), now=timezone.now())
    assert ask(org, "makers/other")
    assert Fetch.objects.get(pk=first.pk).state == "refused"
