"""Models: autoencoders, UNets, attention backends, Stable Diffusion, the CCM, spelling tokens, text encoders."""
