"""The two terms of L = L_align + lambda L_diff (Eq. 8), and what may stand beside them.

`contrastive`: L_align in all its kinds. `negatives`: captions swapped and reworded for it. `regions`, `matching`,
`captioning`: further terms of the text side. `denoising`: L_diff.
"""
