"""Running mteb: many methods at the price of few forward passes, every result kept at once."""
