"""Optional losses. Of the text side: image-text matching, captioning, region-phrase contrast, hard negatives.

Of the diffusion loss: weights of lines of text, OCR perceptual loss, character segmentation loss.
"""
