"""How reuse does on a recording: which patches a setting takes, what that costs, and how wrong it is.

Knows vision towers and recordings; nothing of language models, answers or foveated queries.
"""
