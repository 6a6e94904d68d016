"""Do two frameworks agree: the same random numbers in both."""
