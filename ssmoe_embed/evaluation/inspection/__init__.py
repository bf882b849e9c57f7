"""What a model's routers and experts look like, and what of SSMoE's effect comes from where."""
