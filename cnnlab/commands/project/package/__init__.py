"""NAME: a network, a loss and data."""
