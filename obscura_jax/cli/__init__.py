"""The command `obscura`. Each file parses one command's arguments, calls a function and prints."""
