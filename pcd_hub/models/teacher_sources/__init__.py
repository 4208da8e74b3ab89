"""Where teachers come from: recommended timm weights, a user's modules, files and folders."""
