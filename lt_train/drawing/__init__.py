"""Figures, of runs that are under way and of finished ones."""
