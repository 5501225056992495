"""What is done to latents before a guider is given them."""

import torch


def fix_empty_latent_channels(model, latent_image):
    wanted = model.get_model_object("latent_format")
    if not torch.count_nonzero(latent_image) and latent_image.shape[1] != wanted.latent_channels:
        latent_image = latent_image[:, :1].repeat(1, wanted.latent_channels, 1, 1)
    if wanted.latent_dimensions == 3 and latent_image.ndim == 4:
        latent_image = latent_image.unsqueeze(2)
    return latent_image
