"""kohya's sd-scripts as a trainer, for people who have them (docs/sd-scripts.md): none of their code is here.

`trainer.py` starts `flux_train_network.py`, reads what it prints, logs and saves, and says it in FluxGym's events.
"""

from .place import check

__all__ = ["check"]
