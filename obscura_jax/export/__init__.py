"""Models as compiled programs in files."""
