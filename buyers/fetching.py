"""Bases from a hub: asked for by an org, fetched once for all, kept in our storage.

1. `ask` writes the wish down. 2. A worker (`work`) looks at the repository: its commit, licence,
size, and which of its files a recipe could use. 3. It fetches them one by one into a scratch file
that survives the worker, checks each against the hub's hash, and sends it to our storage. 4. The
artifact is made, once per commit: the next org that asks has it at once.

Only weights as safetensors, configuration and tokenizer are taken: nothing that could run.
"""

import json
import logging
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Sum

from agent import protocol
from buyers import hub as hubs
from buyers import incoming, licences
from buyers.hub import Hub, RemoteFile, Repo
from buyers.hub_models import Fetch
from buyers.incoming import MOST_JSON, Clock, Paused, Transfer
from buyers.models import Artifact
from marketplace import locks, storage, vault
from marketplace.core.errors import Conflict, Invalid, MarketError, TooLarge, Unavailable
from marketplace.core.shapes import BaseShape
from marketplace.models import Org

log = logging.getLogger(__name__)

INDEX: Final = "model.safetensors.index.json"
WHOLE: Final = "model.safetensors"
_BESIDE: Final = frozenset(
    "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model "
    "special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt "
    "chat_template.jinja chat_template.json "
    "LICENSE LICENSE.txt LICENSE.md LICENCE NOTICE NOTICE.txt".split()
)


def ask(
    org: Org, *, hub: str, repo: str, revision: str, token: str, right: str, by: User, now: datetime
) -> Fetch:
    """Writes down that the org wants a base; the same wish while it is under way is that one.

    `token` opens a private or gated repository; it is sealed, and forgotten when the fetch ends.
    `right` says why the org may use a repository that names no licence. Raises Invalid, Conflict.
    """
    hub = hub or next(iter(settings.HUBS), "")
    if hub not in settings.HUBS:
        known = ", ".join(settings.HUBS) or "none"
        raise Invalid(f"there is no hub {hub[:40]!r} here; there are: {known}", field="hub")
    wish: dict[str, Any] = {
        "hub": hub, "repo": hubs.check_name(repo.strip()),
        "revision": hubs.check_revision(revision.strip() or "main"),
    }  # fmt: skip
    if not (token.isascii() and token.isprintable() and len(token) <= 500):
        raise Invalid("this is no token of a hub; make one in your account there", field="token")
    with transaction.atomic():
        locks.hold(f"fetches {org.pk}")
        under_way = Fetch.objects.of(org).under_way()
        if same := under_way.filter(**wish).first():
            return same
        if under_way.count() >= settings.POLICY.open_fetches:
            raise Conflict(
                f"your organisation is fetching {settings.POLICY.open_fetches} bases, which is the "
                "most; wait until one is there, or cancel one"
            )
        return Fetch.objects.create(
            org=org,
            **wish,
            token=vault.seal(token) if token else None,
            right=" ".join(right.split())[:300],
            created_by=by.get_username(),
            created_at=now,
            state=Fetch.MACHINE.initial,
            state_since=now,
        )


def cancel(fetch: Fetch, *, by: User, now: datetime) -> Fetch:
    """Ends a fetch that is under way; raises Conflict if it is not."""
    with transaction.atomic():
        return _refuse(fetch, f"cancelled by {by.get_username()}", now=now, by=by.get_username())


def work(clock: Clock) -> None:
    """Brings every fetch as far as it goes now; one that can't go on waits for the next bell.

    Reads and writes the network for as long as it takes: not for use in a transaction.
    """
    for fetch in Fetch.objects.under_way().select_related("org").order_by("created_at"):
        _advance(fetch, clock)
    incoming.sweep()


def _advance(fetch: Fetch, clock: Clock) -> None:
    """One fetch. What the repository is at fault for refuses it; what may pass is tried again."""
    before = fetch.bytes_done
    try:
        token = vault.unseal(bytes(fetch.token)) if fetch.token else ""
        with Hub(settings.HUBS[fetch.hub], token) as hub:
            if fetch.state == "asked":
                _look(fetch, hub, clock)
            if fetch.state == "fetching":
                _fetch_files(fetch, hub, clock)
    except Paused:
        log.info("the fetch %s goes on at the next bell", fetch.pk)
    except (Unavailable, OSError) as error:
        _put_off(fetch, str(error), progressed=fetch.bytes_done > before, clock=clock)
    except Conflict as error:
        log.info("the fetch %s is left: %s", fetch.pk, error)
    except MarketError as error:
        _refuse(fetch, str(error), now=clock())
    except KeyError:
        _refuse(fetch, f"the hub {fetch.hub} is no longer one of this market's", now=clock())


def _look(fetch: Fetch, hub: Hub, clock: Clock) -> None:
    """Decides whether the repository can be a base; raises MarketError if it can't."""
    repo = hub.look(fetch.repo, fetch.revision)
    config = _json(hub, repo, "config.json")
    shape = _shape(repo, config)
    files = _wanted(repo, hub)
    total = sum(file.bytes for file in files)
    if total > settings.POLICY.base_bytes:
        raise TooLarge(
            f"{fetch.repo} has {total / 2**30:.4g} GiB of weights; a base has at most "
            f"{settings.POLICY.base_bytes / 2**30:.4g} here"
        )
    _require_room(fetch, total)
    if not repo.licence and not fetch.right:
        raise Invalid(
            f"{fetch.repo} names no licence, so nobody may be let to use it. If your organisation "
            "has the right to, add it again and say why (it is kept with your name); or ask its "
            "authors to put `license:` into its card",
            field="right",
        )
    with transaction.atomic():
        fetch.advance(
            "start",
            now=clock(),
            commit=repo.commit,
            closed=repo.closed,
            licence=repo.licence,
            shape=shape,
            files=[asdict(file) | {"done": False} for file in files],
            bytes_total=total,
            bytes_done=0,
            detail="",
            failures=0,
        )


def _require_room(fetch: Fetch, total: int) -> None:
    """What many fetch is kept once, and yet counts for each: it is theirs to use."""
    held = Artifact.objects.filter(pk__in=Fetch.objects.of(fetch.org).values("artifact"))
    had, most = held.aggregate(sum=Sum("bytes"))["sum"] or 0, settings.POLICY.fetched_bytes
    if had + total > most:
        raise TooLarge(
            f"your organisation has fetched {had / 2**30:.4g} GiB of bases and may have "
            f"{most / 2**30:.4g}; {fetch.repo} has {total / 2**30:.4g}. Ask the market's operator"
        )


def _shape(repo: Repo, config: object) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise Invalid(f"config.json of {repo.name} is no JSON object; take another base")
    kinds = config.get("architectures") or []
    if config.get("auto_map"):
        raise Invalid(
            f"{repo.name} needs code of its own (auto_map in config.json), which is never run "
            "here; take a base that transformers knows by itself"
        )
    if not any(str(kind).endswith("ForCausalLM") for kind in kinds):
        shown = ", ".join(map(str, kinds))[:80] or "no architecture"
        raise Invalid(
            f"{repo.name} is not a causal language model ({shown} in config.json); take a base "
            "whose architecture ends in ForCausalLM"
        )
    try:
        return asdict(BaseShape.from_config(config))
    except ValueError as error:
        raise Invalid(f"{repo.name}: {error}") from None


def _wanted(repo: Repo, hub: Hub) -> list[RemoteFile]:
    """The files to take: the weights (one file, or what the index lists), and what is beside."""
    there = {file.path: file for file in repo.files}
    if INDEX in there:
        index = _json(hub, repo, INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        shards = set(named.values()) if isinstance(named, dict) else set()
        weights = [WHOLE] if not shards and WHOLE in there else sorted(map(str, shards))
        weights.append(INDEX)
    else:
        weights = [WHOLE]
    missing = [path for path in weights if path not in there or "/" in path]
    if missing or not any(path.endswith(".safetensors") for path in weights):
        others = sorted(p for p in there if p.endswith((".bin", ".pt", ".pth", ".gguf", ".ckpt")))
        raise Invalid(
            f"{repo.name} has no whole set of safetensors weights"
            + (f" ({missing[0]} is missing)" if missing and missing != [WHOLE] else "")
            + (f", only {others[0]}, which could carry code" if others else "")
            + "; take a repository or a revision that has model.safetensors"
        )
    taken = [path for path in weights if path.endswith(".safetensors") or path == INDEX]
    return [there[path] for path in sorted({*taken, *(_BESIDE & there.keys())})]


def _json(hub: Hub, repo: Repo, path: str) -> object:
    if path not in {file.path for file in repo.files}:
        raise Invalid(
            f"{repo.name} has no {path}; a base is a model in Hugging Face's layout: config.json, "
            "model.safetensors, tokenizer.json"
        )
    try:
        found: object = json.loads(hub.read(repo.name, repo.commit, path, most=MOST_JSON))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{path} of {repo.name} can't be read: {error}") from None
    return found


def _fetch_files(fetch: Fetch, hub: Hub, clock: Clock) -> None:
    """What is missing, file by file; then the artifact."""
    until = clock() + timedelta(seconds=settings.POLICY.fetch_slice_s)
    if _existing(fetch) is None:
        for index, entry in enumerate(fetch.files):
            if not entry["done"]:
                Transfer(fetch, index, hub, clock, until=until).run()
    with transaction.atomic():
        locks.hold(f"base {fetch.hub}:{fetch.repo}@{fetch.commit}")
        base = _existing(fetch) or _make(fetch, now=clock())
        if not fetch.licence:
            licences.state_right(
                fetch.org, base.repository, fetch.right, by=fetch.created_by, now=clock()
            )
        fetch.artifact = base
        fetch.save(update_fields=["artifact"])
        fetch.advance(
            "finish", now=clock(), bytes_done=fetch.bytes_total, token=None, detail="", failures=0
        )


def _existing(fetch: Fetch) -> Artifact | None:
    """The same commit, fetched before: for anybody if it is open, for this org if it is not."""
    return Artifact.objects.filter(
        source=_source(fetch), org=fetch.org if fetch.closed else None
    ).first()


def _source(fetch: Fetch) -> str:
    return f"{fetch.hub}:{fetch.repo}@{fetch.commit}"


def _make(fetch: Fetch, *, now: datetime) -> Artifact:
    files = [
        protocol.File(path=entry["path"], bytes=entry["bytes"], sha256=entry["sha256"])
        for entry in fetch.files
    ]
    return Artifact.objects.create(
        id=fetch.pk,
        org=fetch.org if fetch.closed else None,
        name=fetch.repo[:100],
        licence=fetch.licence,
        shape=fetch.shape,
        source=_source(fetch),
        lineage={"hub": fetch.hub, "repo": fetch.repo, "commit": fetch.commit},
        manifest=[{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in files],
        sha256=protocol.manifest_sha256(files),
        bytes=sum(file.bytes for file in files),
        prefix=storage.base_prefix(fetch.pk),
        created_at=now,
        committed_at=now,
        state_since=now,
    )


def _put_off(fetch: Fetch, why: str, *, progressed: bool, clock: Clock) -> None:
    """Tries again at the next bell, unless it has failed too often without a byte of progress."""
    failures = 1 if progressed else fetch.failures + 1
    if failures > settings.POLICY.fetch_attempts:
        _refuse(fetch, f"given up after {failures} tries: {why}", now=clock())
        return
    log.warning("the fetch %s waits: %s", fetch.pk, why)
    Fetch.objects.under_way().filter(pk=fetch.pk).update(
        failures=failures, detail=f"{why}; it will be tried again"[:1000]
    )


@transaction.atomic
def _refuse(fetch: Fetch, why: str, *, now: datetime, by: str = "market") -> Fetch:
    return fetch.advance(
        "refuse", now=now, reason=why, by=by, detail=why[:1000], token=None, failures=0
    )
