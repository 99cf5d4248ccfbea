"""Parquet files, read by a process of their own: a stranger's file meets a parser in C++.

`rows` starts `python -m buyers.parquet FILE`, which has no secrets, little memory and no more time
than it is given, and sends row after row as JSON. What it dies of is the file's fault.
"""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from buyers.rows import MAX_LINE, Located
from marketplace.core.errors import Invalid

_MEMORY: Final = 4 * 2**30
_ROWS: Final = 256
"""So many are held at once."""
_REFUSED: Final = 65
_ROOT: Final = Path(__file__).resolve().parent.parent


def rows(file: Path, path: str, *, until: float) -> Iterator[Located]:
    """The rows of `file`, which the dataset calls `path`; raises Invalid saying where it broke.

    `until` is a moment of `time.monotonic()`: reading ends there.
    """
    reader = subprocess.Popen(
        [sys.executable, "-m", "buyers.parquet", str(file)],
        cwd=_ROOT,
        env={"PATH": os.defpath},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    late = threading.Timer(max(0.0, until - time.monotonic()), reader.kill)
    late.daemon = True
    late.start()
    where = "row group 0"
    try:
        assert reader.stdout is not None
        while line := reader.stdout.readline(MAX_LINE + 2):
            if len(line) > MAX_LINE:
                raise Invalid(
                    f"{path} {where}: the row after it is longer than {MAX_LINE >> 20} MiB; cut it",
                    field="files",
                )
            group, number, row = msgspec.json.decode(line)
            where = f"row group {group} row {number}"
            yield where, row
        _require_good_end(reader, path, where, late=time.monotonic() > until)
    finally:
        late.cancel()
        reader.kill()
        reader.communicate()


def _require_good_end(
    reader: "subprocess.Popen[bytes]", path: str, where: str, *, late: bool
) -> None:
    assert reader.stderr is not None
    said = reader.stderr.read(4096).decode(errors="replace").strip().splitlines()
    code = reader.wait()
    if code == 0:
        return
    if late:
        why = "takes too long to read; split it"
    elif code == _REFUSED and said:
        why = said[-1][:300]
    else:
        why = f"can't be read: the reader broke off after {where}; write it anew, by pyarrow or pandas"
    raise Invalid(f"{path} {why}", field="files")


def main(file: str, out: IO[bytes]) -> int:
    """The process's whole work."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Only here: the site itself never parses Parquet.
    import pyarrow as pa
    from pyarrow import parquet

    pa.set_cpu_count(1)
    encode = msgspec.json.Encoder(enc_hook=str).encode
    try:
        with parquet.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                number = 0
                for batch in opened.iter_batches(_ROWS, row_groups=[group], use_threads=False):
                    for row in batch.to_pylist():
                        out.write(encode((group, number, row)) + b"\n")
                        number += 1
    except (MemoryError, pa.ArrowMemoryError):
        print(  # noqa: T201  # the parent reads it
            f"needs more than {_MEMORY >> 30} GiB to read; write it with smaller row groups",
            file=sys.stderr,
        )
        return _REFUSED
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or ["it is damaged"])[0]
        print(f"is no readable Parquet file: {first}", file=sys.stderr)  # noqa: T201
        return _REFUSED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.stdout.buffer))
