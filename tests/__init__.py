"""The tests; one file for each part of `cnnlab`, and those of the whole."""
