"""Metrics of single images and embeddings: OCR, spelling, colours, places, retrieval."""
