"""The verifier (RFC 9334): keeps attestation results. Making them is not part of it yet."""
