"""timm models as students and teachers."""
