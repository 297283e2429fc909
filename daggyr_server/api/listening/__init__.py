"""The port: its address, its TLS, who may call, and what is refused before a call begins."""
