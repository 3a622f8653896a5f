"""Errors, which leave the checkout as it was; and classes that must keep their callers working."""

from pathlib import Path

import pytest

from tools.upstream.proposal import propose

from ._support import commit, git, make_checkout, status


def edit(checkout: Path, file: str, old: str, new: str) -> None:
    text = (checkout / file).read_text()
    assert text.count(old) == 1
    (checkout / file).write_text(text.replace(old, new))
    commit(checkout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SqueezeExcite", "the layer must be one of torchvision_layers.nn, got 'SqueezeExcite': MLP, BasicBlock"),
        ("", "the layer must be one of torchvision_layers.nn, got ''"),
        ("SEBlock", "SEBlock is experimental, promote it before"),
        ("StochasticDepth", "StochasticDepth is torchvision.ops.StochasticDepth already"),
    ],
)
def test_a_name_that_is_not_a_new_stable_layer(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        propose(name, tmp_path / "missing")


def test_a_folder_without_torchvision(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(
            ValueError, match=f"layout of torchvision 0.29, {folder} has no torchvision/ops/__init__.py"
        ):
            propose("LayerScale", folder)


def test_a_folder_without_a_repository(checkout: Path) -> None:
    (checkout / ".git").rename(checkout / "git")
    with pytest.raises(ValueError, match="must be the top folder of a git repository, got .*vision"):
        propose("LayerScale", checkout)


def test_a_folder_within_a_repository(checkout: Path) -> None:
    (checkout / ".git").rename(checkout.parent / ".git")
    with pytest.raises(ValueError, match="must be the top folder of a git repository, got .*vision"):
        propose("LayerScale", checkout)


def test_a_checkout_with_changes(checkout: Path) -> None:
    (checkout / "test" / "test_ops.py").write_text("# half an idea\n")
    (checkout / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be clean, commit or remove first: test/test_ops.py, notes.txt"):
        propose("LayerScale", checkout)
    assert (checkout / "test" / "test_ops.py").read_text() == "# half an idea\n"


def test_a_git_hook_does_not_hide_changes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "notes.txt").write_text("")
    monkeypatch.setenv("GIT_DIR", str(make_checkout(checkout.parent / "other") / ".git"))
    with pytest.raises(ValueError, match=r"must be clean, commit or remove first: notes.txt"):
        propose("LayerScale", checkout)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("test/test_ops.py", "", None, "has no test/test_ops.py"),
        ("docs/source/ops.rst", "", None, "has no docs/source/ops.rst"),
        ("docs/source/ops.rst", "Layers\n------", "Blocks\n------", "must have the layout .*no section 'Layers'"),
        (
            "torchvision/ops/__init__.py",
            "__all__ = [",
            "__all__ = [] + [",
            "ops/__init__.py must have the layout .*__all__ is not a list",
        ),
    ],
)
def test_another_layout(file: str, old: str, new: str | None, message: str, checkout: Path) -> None:
    if new is None:
        (checkout / file).unlink()
        commit(checkout)
    else:
        edit(checkout, file, old, new)
    with pytest.raises(ValueError, match=message):
        propose("LayerScale", checkout)
    assert status(checkout) == []


def test_no_usage_log(checkout: Path) -> None:
    utils = checkout / "torchvision" / "utils.py"
    text = utils.read_text()
    utils.unlink()
    utils.write_text(text.replace("def _log_api_usage_once(", "def _count("))
    commit(checkout)
    with pytest.raises(ValueError, match=r"torchvision/utils.py must have the layout .*no _log_api_usage_once"):
        propose("LayerScale", checkout)


def test_a_file_of_the_same_name(checkout: Path) -> None:
    (checkout / "torchvision" / "ops" / "layer_scale.py").write_text("# unrelated\n")
    commit(checkout)
    with pytest.raises(ValueError, match=r"torchvision/ops/layer_scale.py must not exist yet"):
        propose("LayerScale", checkout)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "def _scale(self, input: Tensor)",
            "def _scale(self, input: Tensor, by: int)",
            r"_scale must begin with the parameters \(self, input, by\) as in .*misc.py, got \(self, input\)",
        ),
        (
            "    def _scale(",
            "    def _gate(self) -> None: ...\n\n    def _scale(",
            "SqueezeExcitation must have _gate as in .*misc.py, subclasses may call it",
        ),
        (
            "scale_activation: Callable[..., torch.nn.Module] = torch.nn.Sigmoid",
            "scale_activation: Callable[..., torch.nn.Module] = torch.nn.Hardsigmoid",
            r"SqueezeExcitation.__init__ must begin with .*scale_activation=nn.Hardsigmoid\) as in",
        ),
        (
            "class SqueezeExcitation(torch.nn.Module)",
            "class SqueezeExcitation(torch.nn.Sequential)",
            "SqueezeExcitation must derive from nn.Sequential as in .*misc.py, got nn.Module",
        ),
    ],
)
def test_a_replacement_that_would_break_callers(old: str, new: str, message: str, checkout: Path) -> None:
    edit(checkout, "torchvision/ops/misc.py", old, new)
    with pytest.raises(ValueError, match=message):
        propose("SqueezeExcitation", checkout)


def test_a_helper_with_another_meaning(checkout: Path) -> None:
    edit(
        checkout,
        "torchvision/ops/misc.py",
        "class FrozenBatchNorm2d(",
        "def _check_int(value):\n    return value\n\n\nclass FrozenBatchNorm2d(",
    )
    with pytest.raises(ValueError, match=r"misc.py must not have another _check_int than SqueezeExcitation needs"):
        propose("SqueezeExcitation", checkout)


def test_existing_tests_stay(checkout: Path) -> None:
    tests = "class TestMLP:\n    def test_it(self):\n        pass\n\n\n"
    edit(checkout, "test/test_ops.py", "if __name__ ==", f"{tests}if __name__ ==")
    propose("MLP", checkout)
    text = (checkout / "test" / "test_ops.py").read_text()
    assert tests in text
    assert "\nclass TestMLPLayer:\n" in text
    git(checkout, "stash")
    edit(checkout, "test/test_ops.py", "class TestMLP:", "class TestMLPLayer:\n    pass\n\n\nclass TestMLP:")
    with pytest.raises(ValueError, match="must not have tests of MLP yet, it has TestMLP and TestMLPLayer"):
        propose("MLP", checkout)


def test_a_second_proposal_needs_a_commit_and_is_an_error(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "a folder with spaces")
    propose("LayerScale", checkout)
    with pytest.raises(ValueError, match="must be clean, commit or remove first: .*layer_scale.py"):
        propose("LayerScale", checkout)
    commit(checkout)
    with pytest.raises(ValueError, match=r"layer_scale.py must not have LayerScale yet, it has this very class"):
        propose("LayerScale", checkout)
