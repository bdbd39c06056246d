"""SoftHSM tokens for development, the lab and the tests."""

from softhsm.setup import create_token, find_module, open_config

__all__ = ["create_token", "find_module", "open_config"]
