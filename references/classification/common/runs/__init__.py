"""Files of a run: checkpoints, logs, plots; its signals and its random state."""
