"""The trainer. Nothing here is imported by app or runner; `train.py` is read top to bottom."""

import os

# Before torch loads its threads: by default those that wait for others spin. On a processor that something else uses as
# well (the app, another run) they take each other's time, and a training on the CPU takes several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
