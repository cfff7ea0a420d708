"""The parts of the command line: its options, its lists, and what it shows."""
