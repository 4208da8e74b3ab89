"""Images of other bands than red, green and blue: reading, augmentation, statistics."""
