"""Sources of unlabelled images: files, Hugging Face datasets, generated scenes."""
