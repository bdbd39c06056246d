"""The command `verifier`."""

from __future__ import annotations

import sys

from nftrust.role.main import Role
from verifier.app import serving
from verifier.config import VerifierConfig

ROLE = Role("verifier", "verifier", VerifierConfig, serving, lambda config: [config.management.address])
main = ROLE.main

if __name__ == "__main__":
    sys.exit(main())
