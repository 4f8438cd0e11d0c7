"""Distributed training for long-tailed image recognition."""

__version__ = "0.2.0"
