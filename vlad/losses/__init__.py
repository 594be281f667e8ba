"""The two terms of L = L_align + lambda L_diff (Eq. 8), and optional terms beside them in `extra`.

`contrastive`: L_align (Eq. 3) and its variants. `alignment_heads`: its projections and pooling. `text_side_losses`:
all terms that train the text side. `diffusion_loss`: L_diff (Eq. 9).
"""
