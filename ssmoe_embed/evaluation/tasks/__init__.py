"""What is measured: names of tasks, the offline tasks, the corruption of their texts."""
