"""A worker to be killed: flies once, says that it does, and never comes back.

`python -m tests.flyer '<database settings as JSON>' <name>`
"""

import json
import os
import signal
import sys


def main() -> None:
    database, name = json.loads(sys.argv[1]), sys.argv[2]
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django
    from django.conf import settings

    settings.DATABASES["default"].update(database)
    django.setup()
    from marketplace import locks

    def work() -> None:
        print("flying", flush=True)  # noqa: T201 (the test reads it)
        signal.pause()

    locks.single_flight(name, work)


if __name__ == "__main__":
    main()
