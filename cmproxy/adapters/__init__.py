"""The CM proxy's peers over gRPC."""
