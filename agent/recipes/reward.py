"""The user's own reward: a Python function in their folder, and what it says of an answer.

`reward(prompt, completion, row) -> float` gets the prompt and the answer as text, and the row with
all its columns. It runs inside the job's sandbox, like everything else here.
"""

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agent.recipes.catalog import REWARD_FILE as FILE
from agent.recipes.catalog import Exit
from agent.recipes.job import RecipeError

_FUNCTION: Final = "reward"

Reward = Callable[[str, str, Mapping[str, Any]], float]


def load(folder: Path) -> Reward:
    """The reward of a project; raises RecipeError if there is none, or its file raises."""
    path = folder / FILE
    if not path.is_file():
        raise RecipeError(
            Exit.INPUT,
            f"the script has no {FILE}; add one with def reward(prompt, completion, row)",
        )
    # Files beside it may be imported, as when it is run by hand.
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("gridloom_reward", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a stranger's code may raise anything
        raise _raised(f"{FILE} can't be loaded", error) from error
    finally:
        sys.path.remove(str(folder))
    found = getattr(module, _FUNCTION, None)
    if not callable(found):
        raise RecipeError(
            Exit.INPUT, f"{FILE} has no function reward(prompt, completion, row); add it"
        )
    return _checked(found)


def _checked(function: Callable[..., object]) -> Reward:
    def reward(prompt: str, completion: str, row: Mapping[str, Any]) -> float:
        try:
            found = function(prompt, completion, row)
        except Exception as error:  # a stranger's code may raise anything
            raise _raised("the reward raised", error) from error
        if not isinstance(found, int | float) or not math.isfinite(found):
            raise RecipeError(
                Exit.REWARD,
                f"the reward gave {str(found)[:60]!r}; return a finite number for each answer",
            )
        return float(found)

    return reward


def _raised(what: str, error: Exception) -> RecipeError:
    last = traceback.format_exception_only(error)[-1].strip()[:300]
    places = [
        frame for frame in traceback.extract_tb(error.__traceback__) if FILE in frame.filename
    ]
    where = f" ({FILE} line {places[-1].lineno})" if places else ""
    return RecipeError(Exit.REWARD, f"{what}: {last}{where}; mend it and submit the job again")
