"""The command line `daggyr`. README.md in this folder says how its files work together."""
