"""What decides a run: every key, its default, and where its value comes from. No torch."""
