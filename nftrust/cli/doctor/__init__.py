"""`nftrust doctor`: looks at every hop and names the broken one and its remedy (docs/doctor.md)."""
