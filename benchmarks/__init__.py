"""Measurements; each prints a table, `results/` keeps what was printed with machine and versions."""
