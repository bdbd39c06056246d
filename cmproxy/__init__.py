"""The CM proxy: provisions NFs for OAM and establishes their initial trust (TR 33.876, key issue 2)."""
