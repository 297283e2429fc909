"""The command line `daggyr`; see README.md in this folder."""
