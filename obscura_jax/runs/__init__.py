"""Training runs in folders: settings, files, resuming, and the start of a run."""
