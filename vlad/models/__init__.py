"""Models: autoencoder, UNet, attention backends, Stable Diffusion, the CCM, spelling tokens, text encoders."""
