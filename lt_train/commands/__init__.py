"""One file a command of ``python -m lt_train``."""
