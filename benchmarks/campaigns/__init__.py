"""The campaigns of `./fluxgym bench chaos`, and what they share with the other benches of the runner.

They drive the real runner and the real shim with the stub trainer (`tests/stub_trainer.py`), in temporary folders.
"""
