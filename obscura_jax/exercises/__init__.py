"""Exercises of the notebooks, and their check."""
