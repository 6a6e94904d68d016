"""Weights from and to the outside world."""
