"""Models that transformers has no classes for, made of classes that it has."""
