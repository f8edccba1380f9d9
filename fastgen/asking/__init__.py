"""Many questions through the same scheduler, with a log of the answers: judge and evaluate."""
