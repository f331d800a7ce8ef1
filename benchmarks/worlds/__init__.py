"""What simulated training runs are made of: see `benchmarks/stall_worlds.py`."""
