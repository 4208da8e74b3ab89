"""Several students in one pass: one reading of the images, one teacher, K students."""
