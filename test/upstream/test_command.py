"""The command: the files it writes, its output and its errors."""

from pathlib import Path

import pytest

from tools.upstream.__main__ import main

from ._support import git, status


def test_the_command_writes_the_files_and_prints_the_description(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["LayerScale", "vision"])
    assert capsys.readouterr().out.startswith("# Add `ops.LayerScale`\n")
    assert status(checkout) == [
        "docs/source/ops.rst",
        "test/test_ops.py",
        "torchvision/ops/__init__.py",
        "torchvision/ops/layer_scale.py",
    ]
    assert (checkout / "test" / "test_ops.py").read_text().endswith("pytest.main([__file__])\n")
    git(checkout, "stash", "--include-untracked")
    assert status(checkout) == []


def test_an_error_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["Nothing", str(tmp_path)])
    assert exit.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "error: the layer must be one of torchvision_layers.nn, got 'Nothing'" in output.err
