"""Lowering: exported graphs rewritten to oneDNN's operators, and the programs that run them."""
