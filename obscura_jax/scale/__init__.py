"""The same functions on many devices, in many processes, in files: only where things lie."""
