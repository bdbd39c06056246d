"""What the composition roots of the server roles share. Roles import it; nothing else does."""
