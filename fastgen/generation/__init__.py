"""What `fastgen generate` does: the whole story of a run, from its folder to its last line."""
