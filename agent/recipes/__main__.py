"""`python -m agent.recipes /job/job.json`: run a recipe; how it leaves is `catalog.Exit`."""

import os
import sys
import warnings
from pathlib import Path

from agent.recipes import catalog
from agent.recipes.catalog import Exit
from agent.recipes.job import SETTINGS, RecipeError, Stop, Stopped, load


def main(arguments: list[str]) -> int:
    """Run the job; messages for people go to stderr."""
    stop = Stop().install()
    path = Path(arguments[0] if arguments else os.environ.get("GRIDLOOM_JOB", catalog.JOB_FILE))
    os.environ.update(SETTINGS)
    try:
        job = load(path)
        if job.gang is not None:
            from agent.recipes import gang

            return gang.run(job, path, stop, _print)
        # Here, so that a job that can't run says so at once: torch and transformers take 5 s.
        warnings.filterwarnings("ignore", category=FutureWarning)
        from agent.recipes import ladder

        stop.check()
        ladder.climb(job, stop, _print)
    except Stopped:
        print("stopped before the end, as asked; resumable", file=sys.stderr)
        return Exit.STOPPED
    except RecipeError as error:
        print(error, file=sys.stderr)
        return error.code
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print(
            "out of memory: raise accumulate, set activations to recompute, lower batch_size or "
            "max_length, or take a larger device "
            f"({str(error).splitlines()[:1]})",
            file=sys.stderr,
        )
        return Exit.MEMORY
    return Exit.DONE


def _print(line: str) -> None:
    print(line, flush=True)


def _is_lack_of_memory(error: Exception) -> bool:
    """torch's own error on a GPU is a RuntimeError; on a CPU it is one by its text only."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
