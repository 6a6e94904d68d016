"""Placement only: the same functions over meshes, in several processes, and in exported files."""
