"""The executor whose attempts are carried out by agents, and the local one, which starts an agent of its own."""
