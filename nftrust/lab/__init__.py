"""The whole system on loopback with SoftHSM tokens, for trying, testing and measuring."""
