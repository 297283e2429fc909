"""The graph of one run, and the state of its tasks and of the run itself. It knows no other run, and of hosts only names."""
