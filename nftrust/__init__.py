"""nftrust: initial trust and certificates for 5G network functions (TR 33.876, key issue 2)."""

__version__ = "0.1.0"
