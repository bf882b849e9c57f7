"""Whether two methods differ: paired bootstrap over a task's own examples."""
