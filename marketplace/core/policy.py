"""The market's numbers, in one place: each with its unit, and why it is what it is.

Settings build one `Policy` from these defaults and the environment (`POLICY_<NAME>`); tests
shorten the times. Services are handed what they need, the core never looks them up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from marketplace.core.specs import PROTECTED


@dataclass(frozen=True)
class Policy:
    """All times in seconds, all money in micros, all shares in basis points (1/10,000)."""

    take_bps: int = 800
    """What the platform keeps of each charge: 8 %."""

    heartbeat_s: float = 10
    """How often a node reports; it spreads by ± 20 %."""
    lease_ttl_s: float = 30
    """Longest gap between two heartbeats that is billed; past it the node is stale."""
    lost_after_s: float = 40
    """Silence after which a node is lost, and its jobs go elsewhere."""
    listening_s: float = 60
    """Silence counts only after the market itself has listened this long without a gap."""
    pulse_gap_s: float = 3
    """A market process whose pulse pauses for longer was not listening."""

    hold_s: float = 60
    """How long a quote's price is honoured, and a reservation waits for its nodes."""
    round_s: float = 5
    """How often beat rings for a round; bells ring in between."""
    release_s: int = 7 * 24 * 3600
    """A round's book and matches are public this long after it: a week, so that nobody can act on
    what others want now."""
    rounds_kept_s: int = 90 * 24 * 3600
    """Then they are deleted. A round of 10,000 jobs and 50,000 nodes takes 1.8 MB, a day of them at
    one each 5 s 30 GB."""
    watch_s: float = 2
    """How often beat looks for silent nodes and late starts."""
    start_base_s: float = 120
    """start_timeout = this + 2 × bytes to fetch / the node's measured bandwidth."""
    resolve_s: float = 25
    """How long one attempt at resolving a project's packages may take before its buyer is told to
    pin more: two of them, with and without the nodes' torch, fit into a client's minute."""
    build_s: float = 300
    """What building an environment adds to the start_timeout, beside twice its download."""
    hang_s: float = 600
    """No step and no GPU or CPU use for this long is a hang."""
    settle_wait_s: float = 3600
    """How long a node may take to send what an ended job left; then the lease ends without it."""
    lease_max_s: int = 24 * 3600
    """A lease keeps its price this long, then checkpoints and is placed anew."""
    attempts_without_progress: int = 3
    """So many supplier-side ends in a row without a new checkpoint or step fail the job."""

    premium_bps: int = 1000
    """What a protected job pays on top of the market's price, to the supplier: 10 %."""
    displace_after_s: float = 600
    """No lease that has run for less is displaced."""
    displace_notice_s: float = 60
    """What a displaced job has to save and leave."""
    displace_stay_s: float = 3600
    """A displaced job isn't displaced again within an hour; what it lost is spread over as long."""
    least_gain_bps: int = 1000
    """A displacement gains at least this share of what its newcomer is worth."""
    held_rounds: int = 2
    """So many rounds GPUs that were freed for a job are offered to it alone."""

    settle_s: float = 60
    """How often usage is settled and escrows topped up."""
    escrow_s: int = 3600
    """An escrow holds at most this much running ahead, plus the save."""
    spool_s: int = 3600
    """An agent cut off runs on at most this long on what is paid."""
    save_default_s: int = 30
    """Seconds to write a checkpoint, until a job's own are measured; twice this is reserved."""
    mtbf_s: float = 24 * 3600
    """Mean time between failures that checkpoint intervals are made for: a day, as measured on
    community nodes (Salad's own test: 60 h mean uptime, 35 h where interrupted)."""
    save_most_s: int = 600
    """No checkpoint is believed to take longer: the figure is a node's word, and reserves money."""
    grace_default_s: int = 60
    """From TERM to KILL when nobody promised another notice."""
    payout_hold_s: int = 7 * 24 * 3600
    """Earnings younger than this can't be paid out yet (chargebacks)."""

    enrolment_token_s: int = 15 * 60
    """A one-node token's life."""
    bearer_s: int = 3600
    """Life of the bearer a socket hands out for HTTPS."""
    upload_url_s: int = 900
    """Life of a presigned URL."""
    checkpoints_kept: int = 2
    """Older checkpoints of a job are deleted: two, so that a bad newest one is no end."""
    checkpoints_unproven: int = 3
    """Until an attempt has left so many, the last good one of an earlier attempt is kept, too."""
    upload_bytes_per_lease: int = 200 * 2**30
    """What one lease may upload in all: a quota against a runaway job."""
    dataset_bytes: int = 50 * 2**30
    """Largest dataset version."""
    uncommitted_bytes: int = 200 * 2**30
    """What an org may have begun to upload and not committed: four of the largest versions."""
    base_bytes: int = 200 * 2**30
    """Largest base model that is fetched from a hub: a 100 B model in bfloat16."""
    image_bytes: int = 40 * 2**30
    """Largest container image, as it is fetched; those of CUDA with torch have 3 to 10 GiB."""
    open_fetches: int = 5
    """Most bases that one org has on their way at once."""
    fetched_bytes: int = 2**40
    """What one org may have fetched in all: a dozen models of 70 B."""
    fetch_slice_s: float = 600
    """So long a fetch is worked on before the others have their turn."""
    fetch_attempts: int = 20
    """A fetch is given up after so many failures in a row without a byte of progress."""
    check_bytes: int = 4 * 2**20
    """Datasets up to this size are checked while their buyer waits; larger ones by a worker."""
    check_s: float = 1800
    """No check of a dataset takes longer: what does is refused."""
    parquet_bytes: int = 8 * 2**30
    """Largest Parquet file: it is read from the worker's disk, since its index is at its end."""
    live_jobs: int = 500
    """Most jobs of one org that wait or run: each is read in every round."""
    open_top_ups: int = 10
    """Most top-ups of one org that wait to be paid: each is asked about in every sweep."""
    swaps_limit: int = 3
    """Sockets that take over one key within `swaps_window_s` quarantine the node."""
    swaps_window_s: float = 600

    def premium_of(self, service: str) -> int:
        """What a protected job pays more, or an interruptible one: nothing. Basis points."""
        return self.premium_bps if service == PROTECTED else 0

    def overridden(self, values: Mapping[str, str]) -> "Policy":
        """A copy with `values` (name → number as text); raises ValueError naming a bad one."""
        known = {field.name: field.type for field in fields(self)}
        changes: dict[str, int | float] = {}
        for name, text in values.items():
            if name not in known:
                raise ValueError(f"there is no policy named {name!r}")
            try:
                changes[name] = int(text) if known[name] is int else float(text)
            except ValueError:
                raise ValueError(f"policy {name} must be a number, not {text!r}") from None
        return replace(self, **changes)  # type: ignore[arg-type]
