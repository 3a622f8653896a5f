"""The command: a dry run, files written, and what it says."""

from pathlib import Path

import pytest

from torchvision_layers.upstream.__main__ import main

from ._support import REPOSITORY, git

FROM = ("--repository", str(REPOSITORY))


def changed_files(tree: Path) -> dict[str, bytes]:
    names = [line[3:] for line in git(tree, "status", "--porcelain").splitlines()]
    return {name: (tree / name).read_bytes() for name in names}


@pytest.mark.parametrize("layer", ["LayerScale", "SqueezeExcitation"])
def test_a_dry_run_prints_what_git_applies(
    layer: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([layer, *FROM, "--checkout", str(tree), "--dry-run"]) == 0
    assert git(tree, "status", "--porcelain") == ""
    assert list(tmp_path.iterdir()) == [tree]
    patch = tmp_path / "change.patch"
    patch.write_text(capsys.readouterr().out)
    git(tree, "apply", str(patch))
    applied = changed_files(tree)
    git(tree, "stash", "--include-untracked")
    assert changed_files(tree) == {}
    assert main([layer, *FROM, "--checkout", str(tree)]) == 0
    assert changed_files(tree) == applied


def test_what_is_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["LayerScale", *FROM, "--checkout", "vision"]) == 0
    files = ["torchvision/ops/layer_scale.py", "torchvision/ops/__init__.py", "docs/source/ops.rst", "test/test_ops.py"]
    assert capsys.readouterr().out.splitlines() == [
        *(f"{Path('vision', file)}: written" for file in files),
        "PULL_REQUEST_LayerScale.md: text of the pull request",
    ]
    assert sorted(changed_files(tree)) == sorted(files)
    assert (tmp_path / "PULL_REQUEST_LayerScale.md").read_text().startswith("# Add `ops.LayerScale`\n")
    assert (tree / "test" / "test_ops.py").read_text().endswith("pytest.main([__file__])\n")


def test_the_text_of_a_pull_request_overwrites_nothing(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.md"
    text.write_text("edited")
    command = ["LayerScale", *FROM, "--checkout", str(tree), "--pull-request"]
    assert main([*command, str(text)]) == 2
    assert capsys.readouterr().err == f"error: --pull-request must be a new file, {text} exists\n"
    assert main([*command, str(tree / "text.md")]) == 2
    assert "must be outside of the checkout" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "missing" / "text.md")]) == 2
    assert "must be in a folder that exists" in capsys.readouterr().err
    assert text.read_text() == "edited"
    assert git(tree, "status", "--porcelain") == ""


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Nothing", "--checkout", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: the layer must be one of torchvision_layers.nn, got 'Nothing'")
    assert said.err.count("\n") == 1
