"""The command `obscura`: each file parses one command's words, calls one function, prints."""
