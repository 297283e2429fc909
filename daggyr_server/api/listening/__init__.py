"""Where the coordinator listens: sockets, TLS, tokens, and limits on callers, before any call is answered."""
