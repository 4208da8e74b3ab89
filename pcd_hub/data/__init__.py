"""Images: where they come from, and the views a network sees of them."""
