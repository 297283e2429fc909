"""Which ready tasks of all runs go to which hosts. Knows queues of ready tasks, not runs."""
