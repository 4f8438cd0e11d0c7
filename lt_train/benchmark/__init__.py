"""Throughput of training and loading: ``python -m lt_train.benchmark``."""
