"""The coordinator's gRPC side: the calls of the client's service, the listener in front of all services, and the metrics."""
