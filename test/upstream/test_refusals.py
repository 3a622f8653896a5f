"""What is refused, with the tree left as it was; and what keeps working where a class is replaced."""

from pathlib import Path

import pytest

import torchvision_layers
from torchvision_layers.upstream import change as module
from torchvision_layers.upstream import propose

from ._support import REPOSITORY, commit, git, grow


def change_file(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text()
    assert text.count(old) == 1
    (tree / name).write_text(text.replace(old, new))
    commit(tree)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SqueezeExcite", "the layer must be one of torchvision_layers.nn, got 'SqueezeExcite': MLP, BasicBlock"),
        ("", "the layer must be one of torchvision_layers.nn, got ''"),
        ("SEBlock", "SEBlock is a staged layer: it is promoted here before"),
        ("StochasticDepth", "StochasticDepth is torchvision.ops.StochasticDepth already"),
    ],
)
def test_a_name_that_is_no_new_stable_layer(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        propose(name, tmp_path / "never looked at", REPOSITORY)


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is none at .*missing"):
        propose("LayerScale", tmp_path / "missing", REPOSITORY)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder with a checkout of torchvision"):
        propose("LayerScale", tmp_path / "file", REPOSITORY)
    with pytest.raises(ValueError, match="must be the top of a git repository"):
        propose("LayerScale", tmp_path, REPOSITORY)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(ValueError, match="has no folder torchvision"):
        propose("LayerScale", tmp_path, REPOSITORY)


def test_a_folder_within_a_checkout(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"must be the top of a git repository, got .*test"):
        propose("LayerScale", tree / "test", REPOSITORY)


def test_a_dirty_checkout_is_named_and_left_alone(tree: Path) -> None:
    (tree / "test" / "test_ops.py").write_text("# half an idea\n")
    (tree / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be clean, commit or remove first: test/test_ops.py, notes.txt"):
        propose("LayerScale", tree, REPOSITORY)
    assert (tree / "test" / "test_ops.py").read_text() == "# half an idea\n"


def test_within_a_hook_of_git_the_checkout_is_looked_at(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "notes.txt").write_text("")
    monkeypatch.setenv("GIT_DIR", str(grow(tree.parent / "other") / ".git"))
    with pytest.raises(ValueError, match="must be clean, commit or remove first: notes.txt"):
        propose("LayerScale", tree, REPOSITORY)


def test_a_checkout_that_changes_before_it_is_written_to(tree: Path) -> None:
    change = propose("LayerScale", tree, REPOSITORY)
    (tree / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be clean, commit or remove first: notes.txt"):
        change.write()
    (tree / "notes.txt").unlink()
    change_file(tree, "docs/source/ops.rst", "    MLP\n", "    MLP\n    New\n")
    with pytest.raises(ValueError, match=r"docs/source/ops.rst must be as it was when the change was made"):
        change.write()
    assert git(tree, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("test/test_ops.py", "", None, "has no test/test_ops.py"),
        ("docs/source/ops.rst", "", None, "has no docs/source/ops.rst"),
        ("docs/source/ops.rst", "Layers\n------", "Blocks\n------", "must have the layout .*a section 'Layers'"),
        (
            "torchvision/ops/__init__.py",
            "__all__ = [",
            "__all__ = [] + [",
            "ops/__init__.py must have the layout .*a list",
        ),
    ],
)
def test_another_layout(file: str, old: str, new: str | None, message: str, tree: Path) -> None:
    if new is None:
        (tree / file).unlink()
        commit(tree)
    else:
        change_file(tree, file, old, new)
    with pytest.raises(ValueError, match=message):
        propose("LayerScale", tree, REPOSITORY)


def test_no_log_of_uses(tree: Path) -> None:
    utils = tree / "torchvision" / "utils.py"
    text = utils.read_text()
    utils.unlink()
    utils.write_text(text.replace("def _log_api_usage_once(", "def _count("))
    commit(tree)
    with pytest.raises(ValueError, match="its torchvision/utils.py has no _log_api_usage_once"):
        propose("LayerScale", tree, REPOSITORY)


def test_a_file_that_is_there(tree: Path) -> None:
    (tree / "torchvision" / "ops" / "layer_scale.py").write_text("# of somebody else\n")
    commit(tree)
    with pytest.raises(ValueError, match="torchvision/ops/layer_scale.py must not be there yet"):
        propose("LayerScale", tree, REPOSITORY)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def _scale(self, input: Tensor)", "def _scale(self, input: Tensor, by: int)", "_scale of .* takes by"),
        ("    def _scale(", "    def _gate(self) -> None: ...\n\n    def _scale(", "has _gate, which this layer lacks"),
        (
            "scale_activation: Callable[..., torch.nn.Module] = torch.nn.Sigmoid",
            "scale_activation: Callable[..., torch.nn.Module] = torch.nn.Hardsigmoid",
            "SqueezeExcitation.__init__ of .* takes scale_activation=nn.Hardsigmoid, which must stay so",
        ),
        (
            "class SqueezeExcitation(torch.nn.Module)",
            "class SqueezeExcitation(torch.nn.Sequential)",
            "derives from nn.Seq",
        ),
    ],
)
def test_a_class_whose_callers_would_break_is_not_replaced(old: str, new: str, message: str, tree: Path) -> None:
    change_file(tree, "torchvision/ops/misc.py", old, new)
    with pytest.raises(ValueError, match=message):
        propose("SqueezeExcitation", tree, REPOSITORY)


def test_a_helper_of_another_meaning_is_not_replaced(tree: Path) -> None:
    change_file(
        tree,
        "torchvision/ops/misc.py",
        "class FrozenBatchNorm2d(",
        "def _check_int(value):\n    return value\n\n\nclass FrozenBatchNorm2d(",
    )
    with pytest.raises(ValueError, match="misc.py has another _check_int than SqueezeExcitation needs"):
        propose("SqueezeExcitation", tree, REPOSITORY)


def test_tests_of_theirs_stay(tree: Path) -> None:
    theirs = "class TestMLP:\n    def test_it(self):\n        pass\n\n\n"
    change_file(tree, "test/test_ops.py", "if __name__ ==", f"{theirs}if __name__ ==")
    text = propose("MLP", tree, REPOSITORY).files["test/test_ops.py"][1]
    assert theirs in text
    assert "\nclass TestMLPLayer:\n" in text
    change_file(tree, "test/test_ops.py", "class TestMLP:", "class TestMLPLayer:\n    pass\n\n\nclass TestMLP:")
    with pytest.raises(ValueError, match="must not have tests of MLP yet, it has TestMLP and TestMLPLayer"):
        propose("MLP", tree, REPOSITORY)


def test_a_package_without_its_repository(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_layers, "__file__", str(tree / "site-packages" / "torchvision_layers" / "x.py"))
    with pytest.raises(ValueError, match=r"which has docs/source/conformance.json; .*installed without it"):
        propose("LayerScale", tree)
    with pytest.raises(ValueError, match=r"which has docs/source/conformance.json; .* that is another folder"):
        propose("LayerScale", tree, tree)


def test_an_error_while_writing_leaves_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = propose("LayerScale", tree, REPOSITORY)
    put, calls = module._put, []

    def fails_once(path: Path, text: str) -> None:
        calls.append(path.name)
        if len(calls) == 3:
            raise OSError("the disk is full")
        put(path, text)

    monkeypatch.setattr(module, "_put", fails_once)
    with pytest.raises(OSError, match="the disk is full"):
        change.write()
    assert calls == ["layer_scale.py", "__init__.py", "ops.rst", "layer_scale.py", "__init__.py"]
    assert git(tree, "status", "--porcelain") == ""


def test_layers_are_there_once(tmp_path: Path) -> None:
    tree = grow(tmp_path / "a folder with spaces")
    propose("LayerScale", tree, REPOSITORY).write()
    with pytest.raises(ValueError, match="must be clean, commit or remove first: .*layer_scale.py"):
        propose("LayerScale", tree, REPOSITORY)
    commit(tree)
    with pytest.raises(ValueError, match="LayerScale of torchvision/ops/layer_scale.py is this layer already"):
        propose("LayerScale", tree, REPOSITORY)
