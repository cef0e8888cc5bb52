"""What models watch: recorded screens, captioned videos from disk, drawn ones, texts over time.

Knows files, pixels and texts; nothing of patches, towers or models.
"""
