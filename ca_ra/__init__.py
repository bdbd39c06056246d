"""The CA/RA: registers NFs as end entities and issues their certificates."""
