"""Layers that are tried out before they become stable. The README.md here says what each of them waits for."""
