"""What cnnlab promises about faults, tried out with real processes: `python -m tests.prove --help`."""
