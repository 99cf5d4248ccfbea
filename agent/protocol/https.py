"""The bodies of HTTPS calls under /agent/v1: enrolment, specs, uploads, commits."""

from typing import Annotated, Final
from uuid import UUID

from msgspec import Meta

from agent.protocol.node import Inventory
from agent.protocol.wire import Count, Name, Path, PlaceInJob, Port, Sha256, Text, UploadKind, Wire


class EnrolRequest(Wire, frozen=True, kw_only=True):
    """POST /agent/v1/enrol. `proof` is the new key's signature over `enrol_bytes`."""

    version: int
    token: Name
    name: Name
    public_key: bytes
    proof: bytes
    inventory: Inventory


class EnrolReply(Wire, frozen=True, kw_only=True):
    """The node exists, and waits for its owner to confirm `fingerprint`."""

    node: UUID
    fingerprint: Name
    server: Name
    agents_url: Name
    market_key: bytes


class File(Wire, frozen=True, kw_only=True):
    """A file by its relative path under the folder it belongs to."""

    path: Path
    bytes: Count
    sha256: Sha256


class Input(Wire, frozen=True, kw_only=True):
    """A folder that the job reads at /job/inputs/<name>; `public` may be cached for all orgs."""

    name: Name
    files: list[File]
    public: bool = False


class Resume(Wire, frozen=True, kw_only=True):
    """The checkpoint to go on from, read at /job/inputs/resume."""

    step: Count
    files: list[File]
    place: PlaceInJob = ""
    """Where it lay below /job, and is laid again; "" for nowhere."""


class Member(Wire, frozen=True, kw_only=True):
    """One rank of a gang: its place in the lease's network, and where its node takes packets."""

    address: Name
    lan: Name
    port: Port
    gpus: Annotated[int, Meta(ge=1, le=16)]


class Gang(Wire, frozen=True, kw_only=True):
    """The ranks of a lease, and the network that their sandboxes share with nobody else.

    The first member is where the others meet; `token` is known to this lease's ranks alone.
    """

    network: Annotated[int, Meta(ge=1, lt=2**23)]
    token: Sha256
    members: Annotated[list[Member], Meta(min_length=2, max_length=200)]
    gather_s: Annotated[float, Meta(gt=0, le=86_400)]
    """How long the ranks wait for each other, before they give up: the slowest one's start."""
    gpus_min: Annotated[int, Meta(ge=1, le=1024)]
    """While the first member and so many GPUs are left, they go on without those that are lost."""


class Packages(Wire, frozen=True, kw_only=True):
    """The job's own environment: wheels by version and hash, to be built on the node."""

    sha256: Sha256
    """Of `text`."""
    text: Annotated[str, Meta(max_length=2 * 2**20)]
    """A requirements file of exact versions with their hashes."""
    python: Name
    """The minor version that it is for, like 3.11."""
    torch: Annotated[str, Meta(max_length=40)] = ""
    """The public version of torch that is left to the node; "" if the lock has its own, or none."""
    index: Name
    hosts: Annotated[list[Name], Meta(min_length=1, max_length=20)]
    """Whom the build may reach: the index, and where its files lie."""
    count: Count
    bytes: Count
    """To fetch; 0 where the index tells no sizes."""


REGISTRIES: Final = (
    *("docker.io", "ghcr.io", "quay.io", "nvcr.io"),
    *("public.ecr.aws", "mcr.microsoft.com", "registry.gitlab.com"),
)
"""From where images come unless the market's operator, or a node's owner, says otherwise."""
MOST_LAYERS: Final = 256
_UNPACKED: Final = 5
"""Layers unpack to three to four times their size."""


class Image(Wire, frozen=True, kw_only=True):
    """The container image that the job runs in: layers, which the node fetches from its registry
    like any file, and lays out."""

    reference: Name
    """registry/repository@sha256:…: of one image, or of a list of images by platform."""
    layers: Annotated[list[File], Meta(min_length=1, max_length=MOST_LAYERS)]
    """From the lowest up; their paths are in this order as well."""
    env: dict[str, str] = {}
    """What it sets for its programs."""

    @property
    def digest(self) -> str:
        """Its name by content, without sha256:."""
        return self.reference.rpartition(":")[2]

    @property
    def bytes(self) -> int:
        """To fetch."""
        return sum(layer.bytes for layer in self.layers)


def image_room(size: int) -> int:
    """Bytes of disk that an image of so many bytes may take laid out, its layers not counted:
    many small files take more than they hold."""
    return 2**30 + _UNPACKED * size


class AssignmentSpec(Wire, frozen=True, kw_only=True):
    """GET /agent/v1/assignments/<id>/spec: all a node needs to know to run its share.

    The bytes sent are the bytes hashed: their SHA-256 stands in `Wanted.spec`.
    """

    assignment: UUID
    lease: UUID
    job: UUID
    org: UUID
    epoch: Count
    recipe: Name
    parameters: dict[str, object]
    inputs: list[Input]
    resume: Resume | None
    seed: Count
    rank: Count
    world: Count
    devices: list[Name]
    memory_bytes: Count
    disk_bytes: Count
    environment: Sha256
    """The lock of the training environment that was quoted; another one refuses the job, unless
    it brings packages or an image of its own."""
    grace_s: float
    save_s: float
    start_timeout_s: float
    hang_s: float
    checkpoint_s: float
    """Seconds between checkpoints, for recipes that can choose."""
    gang: Gang | None = None
    """Of a lease on several nodes."""
    packages: Packages | None = None
    """None: it runs in the node's training environment as it is."""
    image: Image | None = None
    """None: it sees the node's own system."""
    egress: list[Name] = []
    """Names that the job may reach, by the gate of its sandbox; empty is nobody."""
    secrets: list[Name] = []
    """Names of variables whose values are asked for when it starts; they stand in no spec."""
    lineage: dict[str, object] = {}
    """For the model card: base, dataset version, recipe, job."""


class InputUrls(Wire, frozen=True, kw_only=True):
    """GET …/inputs: SHA-256 → presigned GET URL, for each file of inputs and resume."""

    urls: dict[str, str]


class LayerUrls(Wire, frozen=True, kw_only=True):
    """GET …/layers: SHA-256 → URL, for each layer of its image; its registry was asked."""

    urls: dict[str, str]
    authorization: str = ""
    """What to show for them, if anything: the registry tells anybody who asks."""


class SecretValues(Wire, frozen=True, kw_only=True):
    """GET …/secrets: name → value. For memory only, and for one start."""

    values: dict[str, str]


class Part(Wire, frozen=True, kw_only=True):
    """One part of a file to send."""

    bytes: Count
    sha256: Sha256


class FileToSend(Wire, frozen=True, kw_only=True):
    """A file about to be uploaded, with its parts in order (one, unless over PART_BYTES)."""

    path: Path
    bytes: Count
    sha256: Sha256
    parts: Annotated[list[Part], Meta(min_length=1, max_length=10_000)]
    upload_id: str | None = None
    """Of an upload in parts whose URLs have run out: sign them anew, and go on with it."""


class UploadRequest(Wire, frozen=True, kw_only=True):
    """POST …/uploads. A call of at most 200 files; more files, more calls."""

    epoch: Count
    kind: UploadKind
    step: Count
    files: Annotated[list[FileToSend], Meta(min_length=1, max_length=200)]


class Put(Wire, frozen=True, kw_only=True):
    """A presigned PUT of one part; `headers` must be sent as they are (they are signed)."""

    url: str
    headers: dict[str, str]


class Upload(Wire, frozen=True, kw_only=True):
    """Where a file's parts go; `upload_id` if it is sent in several."""

    path: Path
    upload_id: str | None
    puts: list[Put]


class UploadReply(Wire, frozen=True, kw_only=True):
    """URLs for each file asked for, in the same order."""

    files: list[Upload]


class SentFile(Wire, frozen=True, kw_only=True):
    """A file that has been sent; `etags` of its parts, in order, if there were several."""

    path: Path
    bytes: Count
    sha256: Sha256
    upload_id: str | None = None
    etags: list[str] = []


class CommitRequest(Wire, frozen=True, kw_only=True):
    """POST …/commits: all files are up; make this checkpoint, artifact or log the job's."""

    epoch: Count
    kind: UploadKind
    step: Count
    files: Annotated[list[SentFile], Meta(min_length=1, max_length=10_000)]
    seconds: float = 0.0
    """How long writing it took the job, if known: the reserve for the save follows it."""
    running_ms: Count | None = None
    """Running time at which a checkpoint was written, long before all of it was sent."""
    place: PlaceInJob = ""
    """Where it lay below /job, for a script that looks for its own last one there."""


class CommitReply(Wire, frozen=True, kw_only=True):
    """`manifest`: SHA-256 of the manifest as committed."""

    manifest: Sha256


class Problem(Wire, frozen=True, kw_only=True):
    """The body of every answer with an error status."""

    code: Name
    message: Text
