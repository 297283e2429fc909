"""Messages and services, compiled from the `.proto` files beside this one when the package is built."""
