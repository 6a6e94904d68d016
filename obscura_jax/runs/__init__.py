"""Train in a folder: settings, files, resuming, and the start of processes."""
