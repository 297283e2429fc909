"""The commands of `daggyr`. Commands that belong together share a file, and `daggyr_server.cli.main` imports it by its name."""
