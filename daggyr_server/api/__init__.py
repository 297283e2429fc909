"""The coordinator's gRPC side: servicers that translate and delegate to the driver, and the listener in front of them."""
