"""The graph of one run, and the state of its tasks and of the run itself. Knows no host and no other run."""
