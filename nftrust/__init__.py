"""nftrust: initial trust and certificates for 5G network functions (TR 33.876, key issue 2)."""

from pkgutil import extend_path

# Two wheels share this package (docs/decisions/0008-two-wheels.md): `nf-agent` owns this file, `nftrust` adds modules,
# and they may lie in different folders, as where a virtual environment adds to an image's site packages.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
