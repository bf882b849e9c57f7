"""Makes the data files that ship with ``ssmoe_embed`` from ordinary distribution packages."""
