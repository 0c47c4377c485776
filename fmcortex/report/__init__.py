"""One HTML page that says what a model was trained on and how well it predicts."""
