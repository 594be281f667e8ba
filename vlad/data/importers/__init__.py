"""Importers: images and annotations in the formats of public datasets, made into shards."""
