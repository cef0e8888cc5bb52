"""What models watch: recorded screens, captioned videos from disk, procedural ones.

Knows files and pixels; nothing of patches, towers or models.
"""
