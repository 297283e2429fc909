"""The commands of `daggyr`, a file for those that belong together; `daggyr_server.cli.main` finds them by name."""
