"""The paper's tables as data, and measured scores compared with them."""
