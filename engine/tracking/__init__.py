"""What a run writes down while it learns, and plots of it."""
