"""The run folder: what is true of a run, and how it stays so. Nothing of the method's rules."""
