"""Layers become a file system: what each changes, what is left out, and where none may lead."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from agent.sandbox import unpack
from tests.registry import layer


def laid_out(folder: Path, *layers: bytes) -> Path:
    """Where they lie, one over the other."""
    source, rootfs = folder / "layers", folder / "rootfs"
    source.mkdir()
    for at, data in enumerate(layers):
        (source / f"{at:03}").write_bytes(data)
    assert unpack.main(str(source), str(rootfs)) == 0
    return rootfs


def test_whatever_lies_where_a_sandbox_mounts_makes_way(tmp_path: Path):
    rootfs = laid_out(
        tmp_path,
        layer(
            {"etc/hosts": "1.2.3.4 market\n", "opt/gridloom": "a file", "bin/run": "#!/bin/sh\n"},
            links={"job": "/", "proc": "nowhere", "etc/passwd": "/etc/hosts", "lib": "usr/lib"},
        ),
    )
    for path in unpack.MOUNTS:
        assert (rootfs / path).is_dir()
        assert not (rootfs / path).is_symlink()
    for path in unpack.FILES:
        assert (rootfs / path).is_file()
        assert not (rootfs / path).is_symlink()
    assert os.readlink(rootfs / "lib") == "usr/lib"
    assert (rootfs / "bin/run").stat().st_mode & 0o777 == 0o755
    assert (rootfs / "etc/hosts").stat().st_mode & 0o777 == 0o644


def test_a_layer_changes_those_below_it(tmp_path: Path):
    below = layer(
        {
            "kept/a": "a", "gone/a": "a", "emptied/a": "a", "emptied/deep/b": "b", "file": "f",
            "folder/a": "a", "usr/bin/tool": "1",
        },
        links={"bin": "usr/bin", "var/run": "/run", "emptied/link": "a", "swapped": "kept"},
    )  # fmt: skip
    above = layer(
        {
            "kept/b": "b", ".wh.gone": "", "emptied/new": "n", "emptied/deep/c": "c",
            "emptied/.wh..wh..opq": "", "file/now": "a folder", "folder/.wh.a": "",
            "bin/tool": "2", "bin/more": "3", "var/run/pid": "1", "kept/.wh..wh.plnk": "",
        },
        hard={"usr/bin/same": "bin/tool"},
        folders=["swapped"],
    )  # fmt: skip
    rootfs = laid_out(
        tmp_path, below, above, layer({"own": "x", "own.d/x": "x", ".wh.own": "", ".wh.own.d": ""})
    )
    assert (rootfs / "own").exists()
    assert (rootfs / "own.d/x").exists()
    (rootfs / "own").unlink()
    (rootfs / "own.d/x").unlink()
    found = {
        str(path.relative_to(rootfs)): path.read_text()
        for path in rootfs.rglob("*")
        if path.is_file() and not path.is_symlink() and path.relative_to(rootfs).parts[0] != "etc"
    }
    assert found == {
        "kept/a": "a", "kept/b": "b", "emptied/new": "n", "emptied/deep/c": "c",
        "file/now": "a folder", "usr/bin/tool": "2", "usr/bin/more": "3", "usr/bin/same": "2",
        "run/pid": "1",
    }  # fmt: skip
    assert not (rootfs / "swapped").is_symlink()
    assert (rootfs / "usr/bin/same").stat().st_nlink == 2


def test_layers_packed_by_zstd_are_read(tmp_path: Path):
    packed = pa.compress(layer({"a": "x"}), codec="zstd", asbytes=True)
    assert (laid_out(tmp_path, packed) / "a").read_text() == "x"


@pytest.mark.parametrize("archive", [
    layer({"a/../../out": "x"}),
    layer({"a/b": "x"}, links={"loop": "loop"}) + b"",
    layer({}, hard={"out": "../../out"}),
    layer({".wh...": ""}),
    layer({"a/.wh.": ""}),
    layer({".wh..": ""}),
    layer({"big": bytes(2**20)}, packed=True)[:-100],
])  # fmt: skip
def test_an_archive_that_leads_out_or_nowhere_is_refused(tmp_path: Path, archive, capfd):
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers/000").write_bytes(archive)
    (tmp_path / "layers/001").write_bytes(layer({"loop/x": "x"}))
    (tmp_path / "beside").touch()
    said = unpack.main(str(tmp_path / "layers"), str(tmp_path / "rootfs"))
    assert said == unpack.WRONG
    assert "its files can't be laid out" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "beside").exists()


def test_symlinks_of_an_image_lead_within_it(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    layers = (
        layer({}, links={"a": str(outside), "b": "../../../../outside"}),
        layer({"a/one": "1", "b/two": "2"}),
    )
    rootfs = laid_out(tmp_path, *layers)
    assert list(outside.iterdir()) == []
    assert (rootfs / str(outside).lstrip("/") / "one").read_text() == "1"
    assert (rootfs / "outside/two").read_text() == "2"
