"""The epochs of a run as a CSV file and as TensorBoard events."""

import csv
from pathlib import Path

from .files import atomic_path

__all__ = ["Log"]


class Log:
    """Writes the history of a run to ``log.csv``, one row per epoch, and optionally to TensorBoard.

    A run that is killed and resumed leaves the same files as one that is not. Write each epoch before its checkpoint:
    an epoch that the checkpoint lacks is trained again, and its first row and events are replaced.

    Args:
        output_dir: an existing directory.
        tensorboard: whether to write scalars to ``output_dir/tensorboard``. Default: ``False``.
        start_epoch: epochs already trained by the run that this one resumes. Default: ``0``.

    Errors: ``ImportError`` if tensorboard is needed and not installed; ``ValueError`` for a negative epoch.
    """

    def __init__(self, output_dir: str | Path, tensorboard: bool = False, start_epoch: int = 0) -> None:
        if start_epoch < 0:
            raise ValueError(f"start_epoch must be at least 0; got {start_epoch}")
        self.path = Path(output_dir) / "log.csv"
        self._writer, self._last_epoch = None, start_epoch
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError("tensorboard is not installed: pip install tensorboard") from error
            folder = Path(output_dir) / "tensorboard"
            if not any(folder.glob("events.out.tfevents.*")):
                self._last_epoch = 0  # the run resumes in another directory, which gets all epochs
            self._writer = SummaryWriter(str(folder), purge_step=self._last_epoch + 1)

    def write(self, history: list[dict[str, float]]) -> None:
        """Writes all epochs to the CSV file, and the new ones to TensorBoard.

        Args:
            history: one entry per epoch, starting with the first; ``"epoch"`` counts from 1, other keys are columns.

        Errors: ``ValueError`` if there is no entry, or if columns differ between entries.
        """
        if not history:
            raise ValueError("history must hold at least one epoch, got none")
        columns = list(history[0])
        for entry in history:
            if entry.keys() != history[0].keys():
                raise ValueError(
                    f"history must have the same columns in each epoch; the first has {', '.join(columns)}, "
                    f"epoch {entry.get('epoch')} has {', '.join(entry)}"
                )
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(history)
        if self._writer is None:
            return
        for entry in history:
            epoch = int(entry["epoch"])
            if epoch > self._last_epoch:
                for name, value in entry.items():
                    if name != "epoch":
                        self._writer.add_scalar(name, value, epoch)
                self._last_epoch = epoch
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
