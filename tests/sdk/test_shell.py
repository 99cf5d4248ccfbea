"""`gridloom attach` from a terminal's side: keys go up, what is shown comes down."""

import os
import subprocess
import sys
import threading

import pytest
from websockets.sync.server import ServerConnection, serve

JOB = "01a21587-5de8-7408-8491-9328ff5e1fb8"


@pytest.fixture
def market():
    """A market's end of one shell: it shows what is typed, in capitals, until a line is whole."""
    frames = []

    def talk(socket: ServerConnection) -> None:
        frames.append((socket.request.path, socket.request.headers["Authorization"]))
        if JOB not in socket.request.path:
            socket.close(4000, "a shell opens in a running job only, and this one is queued")
            return
        for frame in socket:
            frames.append(frame)
            if frame[:1] == b"d":
                socket.send(frame[3:].upper())
                if b"\n" in frame:
                    return

    with serve(talk, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.frames = frames
        yield server
        server.shutdown()


def attach(market, job: str, tmp_path) -> subprocess.CompletedProcess:
    port = market.socket.getsockname()[1]
    return subprocess.run(
        [sys.executable, "-m", "buyers.sdk", "attach", job], input="hello\n", text=True,
        capture_output=True, timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GRIDLOOM_KEY": "glk_mine",
             "GRIDLOOM_URL": f"http://127.0.0.1:{port}"},
    )  # fmt: skip


def test_keys_go_up_and_what_is_shown_comes_down(market, tmp_path):
    done = attach(market, JOB, tmp_path)
    assert (done.returncode, done.stdout) == (0, "HELLO\n")
    assert "What is typed here is kept" in done.stderr
    asked, window, keys = market.frames[:3]
    assert asked == (f"/api/v1/jobs/{JOB}/shell", "Bearer glk_mine")
    assert (window[:3], len(window)) == (b"w\0\4", 7)
    assert keys == b"d\0\6hello\n"


def test_why_a_shell_does_not_open_is_said_in_a_line(market, tmp_path):
    done = attach(market, JOB.replace("0", "9"), tmp_path)
    assert done.returncode == 1
    assert "and this one is queued" in done.stderr
    assert "Traceback" not in done.stderr
