"""Documents out of files: what is read, how it is cut into passages, and what is told of the rest."""
