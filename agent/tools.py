"""What all assignments of a node share: the machine, the market, the disk, the meters."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from uuid import UUID

from agent.api import Api
from agent.hardware import Machine
from agent.images import Images
from agent.making import Shelves
from agent.packages import Builds
from agent.sampling import Sampler
from agent.telling import Outbox
from agent.transfer import Downloads
from agent.uploads import Uploads
from agent.usage import Spool


@dataclass(frozen=True)
class Tools:
    """Made once by the loop, used by every `Life`."""

    machine: Machine
    api: Api
    downloads: Downloads
    shelves: Shelves
    builds: Builds
    images: Images
    uploads: Uploads
    spool: Spool
    sampler: Sampler
    outbox: Outbox
    changed: Callable[[], None]
    """The market should hear of it at once."""
    noted: Callable[[], None]
    """The market may like to hear of it before the next heartbeat is due."""
    taken: Callable[[UUID], Collection[str]]
    """Devices that assignments other than this one use."""
