"""Named models: recipes, building the small repository, its card, loading."""
