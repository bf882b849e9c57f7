"""A model with other settings."""


def having(module, **changes):
    """The same module, whose settings are changed."""
    module.settings = module.settings.changed(**changes)
    return module
