"""A folder of results, and what is shown of it."""
