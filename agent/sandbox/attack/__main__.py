"""Runs the attacks and prints one JSON object a line: check, open (how far it got, or null)."""

import json
import sys
import traceback

from . import gate, hogs, kernel, network, walls


def main() -> None:
    if sys.argv[1] == "hog":
        hogs.HOGS[sys.argv[2]](int(sys.argv[3]))
        return
    with open("attack.json") as file:
        targets = json.load(file)
    all_walls = walls.CHECKS | network.CHECKS | kernel.CHECKS
    checks = gate.CHECKS if sys.argv[1] == "gate" else all_walls
    for name, check in checks.items():
        try:
            found = check(targets)
        except OSError:
            found = None  # refused: that is what the wall is for
        except Exception:  # noqa: BLE001 - whatever happens to one attack, the next one runs
            found = "the attack itself failed: " + traceback.format_exc(limit=-1)
        print(json.dumps({"check": name, "open": found}), flush=True)


main()
