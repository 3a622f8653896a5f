"""The table of the epochs, and TensorBoard."""

import csv
import sys
from pathlib import Path

import pytest
from common.runs import logs

from ._support import epochs


def read_table(folder: Path) -> list[dict[str, float]]:
    with open(folder / "log.csv", newline="") as file:
        return [
            {name: int(text) if name == "epoch" else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def test_table_has_one_row_per_epoch(tmp_path):
    history = epochs(1, 2, 3)
    with logs.Log(tmp_path) as log:
        for count in (1, 2, 3):
            log.write(history[:count])
            assert read_table(tmp_path) == history[:count]  # to the last digit
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == ",".join(history[0])
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_resumed_run_has_no_duplicate_rows(tmp_path):
    with logs.Log(tmp_path) as log:
        log.write(epochs(1, 2, 3))
    history = epochs(1, 2) + epochs(3, shift=1.0)
    with logs.Log(tmp_path, start_epoch=2) as log:
        log.write(history)
    assert read_table(tmp_path) == history


class Unprintable(float):
    def __repr__(self):
        raise KeyboardInterrupt

    __str__ = __repr__


def test_interrupted_write_keeps_earlier_table(tmp_path):
    with logs.Log(tmp_path) as log:
        log.write(epochs(1))
        with pytest.raises(KeyboardInterrupt):
            log.write([{**epochs(1)[0], "lr": Unprintable()}, *epochs(2)])
    assert read_table(tmp_path) == epochs(1)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_bad_histories(tmp_path):
    with logs.Log(tmp_path) as log:
        with pytest.raises(ValueError, match="history must hold at least one epoch, got none"):
            log.write([])
        for other in ({"epoch": 2, "train_loss": 1.0}, {**epochs(2)[0], "more": 1.0}):
            with pytest.raises(
                ValueError, match=f"the first has {', '.join(epochs(1)[0])}, epoch 2 has {', '.join(other)}"
            ):
                log.write([*epochs(1), other])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="start_epoch must be at least 0; got -1"):
        logs.Log(tmp_path, start_epoch=-1)


@pytest.fixture
def scalars(monkeypatch):
    """Reads what TensorBoard shows: steps and values of each name."""
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    # Files of the same second differ in this number, and are read in the order of their names.
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))

    def read(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
        events = accumulator.EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        return {
            name: ([event.step for event in events.Scalars(name)], [event.value for event in events.Scalars(name)])
            for name in events.Tags()["scalars"]
        }

    return read


def expected_scalars(history: list[dict[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    """The scalars of ``history``, in the format of :func:`scalars`."""
    return {
        name: ([entry["epoch"] for entry in history], [pytest.approx(entry[name], rel=1e-6) for entry in history])
        for name in history[0]
        if name != "epoch"
    }


def test_tensorboard_shows_each_written_epoch(tmp_path, scalars):
    history = epochs(1, 2, 3)
    with logs.Log(tmp_path, tensorboard=True) as log:
        for count in (1, 2, 3):
            log.write(history[:count])
            assert scalars(tmp_path) == expected_scalars(history[:count])
    assert scalars(tmp_path) == expected_scalars(history)
    assert read_table(tmp_path) == history


@pytest.mark.parametrize("missing_bytes", [0, 7])
def test_tensorboard_shows_repeated_epochs_once(tmp_path, scalars, missing_bytes):
    """The first run is killed after or while writing the events of epoch 3, and before its checkpoint."""
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, 2, 3))
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[: -missing_bytes or None])
    history = epochs(1, 2) + epochs(3, 4, shift=1.0)
    with logs.Log(tmp_path, tensorboard=True, start_epoch=2) as log:
        log.write(history[:3])
        log.write(history)
    assert scalars(tmp_path) == expected_scalars(history)


def test_tensorboard_shows_all_epochs_in_another_folder(tmp_path, scalars):
    with logs.Log(tmp_path, tensorboard=True, start_epoch=2) as log:
        log.write(epochs(1, 2, 3))
    assert scalars(tmp_path) == expected_scalars(epochs(1, 2, 3))


def test_tensorboard_replaces_an_earlier_run(tmp_path, scalars):
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, 2, 3))
    with logs.Log(tmp_path, tensorboard=True) as log:
        log.write(epochs(1, shift=1.0))
    assert scalars(tmp_path) == expected_scalars(epochs(1, shift=1.0))


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        logs.Log(tmp_path, tensorboard=True)
    with logs.Log(tmp_path) as log:
        log.write(epochs(1))
