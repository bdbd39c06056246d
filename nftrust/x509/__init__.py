"""X.509 (RFC 5280) as TS 33.310 profiles it: build, check, issue. No I/O, no tokens."""
