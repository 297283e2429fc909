"""The rules of one attempt that every executor keeps. The agent and the server share them; this package imports neither."""
