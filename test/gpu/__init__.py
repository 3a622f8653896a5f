"""Layers, folding, exported files and training on the device of ``--device``: a GPU, or in ``make test`` the CPU."""
