"""Where models and text come from when a study names none of its own."""
