"""The parts of a run: plans, lessons, records, and a person's own models."""
