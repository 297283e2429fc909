"""The loop round the core. README.md of `daggyr_server` says which file does what, and which three of them the API uses."""
