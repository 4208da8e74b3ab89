"""How often each of the 256 values occurs in an image."""

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from pcd_hub.data.multiband.image import BandImage


def value_shares(image: BandImage | Image.Image) -> Float[np.ndarray, "bands 256"]:
    """Return the share of every value in every band; they add up to 1."""
    planes = image.bands if isinstance(image, BandImage) else (image,)
    counts = np.concatenate([np.asarray(plane.histogram()) for plane in planes]).reshape(-1, 256)
    return counts / counts.sum(1, keepdims=True)


def brightest(shares: Float[np.ndarray, "*images 256"]) -> Int[np.ndarray, "*images"]:
    """Return the value that at most 0.1 % of the pixels exceed."""
    return (shares.cumsum(-1) < 0.999).sum(-1)
