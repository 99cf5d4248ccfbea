"""A project's packages are resolved before anybody pays, into a lock that quote and job name."""

from collections.abc import Iterator

import pytest

from agent import protocol
from buyers import control, packages
from buyers.models import Quote
from buyers.own_models import PackageLock
from marketplace.core import specs
from marketplace.core.errors import Invalid, Unavailable
from marketplace.core.money import MICRO
from scheduler import clearing
from scheduler.models import Lease
from tests import world
from tests.buyers import folders
from tests.index import Index, served

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("s3")]
WANTED = {"recipe": "script", "budget": "50", "limit": "5", "memory_gib": 1, "hours": 1,
          "disk_gib": 1, "parameters": {"entry": "main.py"}}  # fmt: skip


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with served(Index()) as it:
        it.add("greeting", "2.1", requires=["salutation>=1"])
        it.add("salutation", "1.5")
        it.add("salutation", "1.4")
        it.add("torch", "2.13.0", requires=["nvidia_cublas"])
        it.add("torch", "2.0.0", requires=["nvidia_cublas"])
        it.add("nvidia_cublas", "13.0")
        it.add("clashes", "1.0", requires=["salutation<1.5"])
        it.add_source("sourceful")
        yield it


@pytest.fixture(autouse=True)
def from_there(index: Index, settings) -> None:
    settings.PACKAGE_INDEX_URL = index.url
    index.is_away = False


@pytest.fixture
def org(now):
    return world.org("Buyer", now=now, wallet=100 * MICRO)


@pytest.fixture
def agent(now):
    world.listening(now)
    return world.agent(
        world.org("Supplier", now=now), now=now, python="3.11", torch="2.13.0", builds=True
    )


@pytest.fixture
def ask(org, now):
    """The request for a project with these files, as `resolved` leaves it."""

    def ask(files: dict[str, bytes], **changes):
        folders.upload(org, "mine", {"main.py": b"", **files}, now=now)
        asked = specs.parse({**WANTED, "script": "mine", **changes})
        return packages.resolved(org, asked, now=now)

    return ask


def test_requirements_become_a_lock_of_exact_wheels(ask, org, index):
    asked = ask({"requirements.txt": b"greeting\n"})
    lock = PackageLock.objects.of(org).get(sha256=asked.packages)
    assert protocol.sha256_hex(lock.text.encode()) == lock.sha256
    names = [line.split("==")[0] for line in lock.text.splitlines() if line[0] != "#"]
    assert names == ["greeting", "salutation"]
    assert "salutation==1.5 --hash=sha256:" in lock.text
    assert (lock.count, lock.hosts, lock.torch) == (2, [index.host], "")
    assert 0 < lock.bytes < 5000
    assert ask({"requirements.txt": b"greeting\n"}).packages == lock.sha256


def test_torch_is_left_to_the_nodes_where_their_version_will_do(ask, agent):
    asked = ask({"pyproject.toml": b"[project]\nname='x'\ndependencies=['torch>=2','greeting']\n"})
    lock = PackageLock.objects.get(sha256=asked.packages)
    assert lock.torch == "2.13.0"
    assert "torch==" not in lock.text
    assert "nvidia" not in lock.text
    insists = PackageLock.objects.get(sha256=ask({"requirements.txt": b"torch==2.0.0\n"}).packages)
    assert insists.torch == ""
    assert "torch==2.0.0" in insists.text
    assert "nvidia-cublas==13.0" in insists.text


def test_a_lock_of_the_projects_own_is_kept_to(ask, index):
    lock = PackageLock.objects.get(
        sha256=ask({"requirements.lock": b"greeting==2.1\nsalutation==1.4\n"}).packages
    )
    assert "salutation==1.4" in lock.text
    with pytest.raises(Invalid, match="SHA-256 differs"):
        ask({"requirements.lock": b"salutation==1.4 --hash=sha256:" + b"0" * 64 + b"\n"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"sourceful", "sourceful.*no usable wheels|[Ww]heels are required for `sourceful`"),
        (b"nowhere-to-be-found", "nowhere-to-be-found was not found"),
        (b"greeting==9", "greeting==9"),
        (b"clashes\nsalutation==1.5", "clashes.*salutation"),
    ],
)
def test_what_can_not_be_had_is_refused_with_the_reason(ask, line, why):
    with pytest.raises(Invalid, match=why) as refused:
        ask({"requirements.txt": line + b"\n"})
    assert refused.value.field == "script"
    assert len(str(refused.value)) < 700


def test_an_index_that_is_away_is_said_and_nothing_is_kept(ask, index, settings):
    settings.PACKAGE_INDEX_URL = "http://127.0.0.1:9/simple"
    with pytest.raises(Unavailable, match="index doesn't answer"):
        ask({"requirements.txt": b"greeting\n"})
    assert not PackageLock.objects.exists()


def test_a_project_that_asks_for_nothing_runs_in_the_nodes_environment(ask):
    assert ask({"requirements.txt": b"# nothing\n"}).packages == "none"
    assert ask({"requirements.txt": b"greeting\n"}, packages="none").packages == "none"


def test_a_lock_is_its_orgs_alone(ask, org, now):
    lock = ask({"requirements.txt": b"greeting\n"}).packages
    other = world.org("Other", now=now, wallet=100 * MICRO)
    folders.upload(other, "mine", {"main.py": b""}, now=now)
    asked = specs.parse({**WANTED, "script": "mine", "packages": lock})
    with pytest.raises(Invalid, match="resolved no packages"):
        control.quote(other, asked, now=now)


def test_quote_job_and_spec_name_one_lock_and_only_fitting_nodes_are_used(org, now, agent, index):
    supplier = world.org("Old", now=now)
    world.agent(supplier, now=now, ask=MICRO // 2, python="3.11", torch="2.12.0", builds=True)
    world.agent(supplier, now=now, ask=MICRO // 2, python="3.11", torch="2.13.0")
    world.agent(supplier, now=now, ask=MICRO // 2, python="3.10", torch="2.13.0", builds=True)
    files = {"main.py": b"", "requirements.txt": b"torch\ngreeting\n"}
    folders.upload(org, "mine", files, now=now)
    asked = specs.parse({**WANTED, "script": "mine"})
    quote = control.quote(org, asked, now=now)
    quote = Quote.objects.get(pk=quote.pk)
    fitting = [option for option in quote.options if option["fits"]]
    assert [option["node"] for option in fitting] == [agent.node.name]
    assert fitting[0]["environment"] == quote.request["packages"]
    assert fitting[0]["start_s"] > 10
    assert {option["why"] for option in quote.options} == {
        "", "the packages go with torch 2.13.0, it has 2.12.0",
        "no environments of jobs' own are built there",
        "the packages are for Python 3.11, it has 3.10",
    }  # fmt: skip
    job = control.submit(org, asked, by=org.members.get(), now=now)
    assert job.packages.sha256 == quote.request["packages"]
    assert clearing.clear_market(now=now) == 1
    share = Lease.objects.get(job=job).assignments.get()
    assert share.node == agent.node
    spec = protocol.decode(bytes(share.spec), protocol.AssignmentSpec)
    assert spec.packages.text == job.packages.text
    assert (spec.packages.index, spec.packages.hosts) == (index.url, [index.host])
    assert spec.start_timeout_s > 300


def test_a_recipe_of_ours_runs_in_the_nodes_environment_and_says_so(ask):
    with pytest.raises(Invalid, match=r"grpo runs in the node's own.*requirements.txt"):
        ask({"requirements.txt": b"greeting\n"}, recipe="grpo", parameters={})
