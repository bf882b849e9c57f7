"""Measuring models of images and texts: tasks, image corruption, and the encoder that mteb calls."""
