"""What the methods are compared with, as mteb encoders."""
