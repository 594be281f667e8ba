"""Metrics of images and embeddings: OCR, spelling, colours, text positions, text-image retrieval."""
