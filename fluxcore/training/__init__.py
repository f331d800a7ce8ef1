"""The trainer. Nothing here is imported by app or runner; `train.py` is read top to bottom."""
