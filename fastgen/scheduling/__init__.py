"""Keeping servers busy: what is in flight, how patiently it is asked again. Nothing of Self-Instruct."""
