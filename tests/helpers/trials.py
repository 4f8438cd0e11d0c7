"""How many random trials a test makes, and which.

``LT_TRAIN_TRIALS=5000 LT_TRAIN_SEED=7 python -m pytest tests/reliability`` makes others.
"""

import os

SEED = int(os.environ.get("LT_TRAIN_SEED", "0"))


def trials(usual: int) -> int:
    """The number that is asked for, else the ``usual`` one."""
    return int(os.environ.get("LT_TRAIN_TRIALS", usual))
