"""The parts of an export: which instructions, what a row is, in which order, into which file."""
