"""The similarity filter as a tool for any data set: files, and Python."""
