"""The operator's command `nftrust`."""
