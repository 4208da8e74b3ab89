"""A projection head for a teacher without one: trained by contrast on its pooled features."""
