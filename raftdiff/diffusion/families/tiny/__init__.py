"""Small random models in the exact formats of the families: the networks, a file for each kind of them.

``models.tiny`` lists them all and writes them as folders and files.
"""
