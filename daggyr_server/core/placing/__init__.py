"""Which ready tasks of all runs go to which hosts. It knows runs by their numbers, queues and attempts only."""
