"""Reward models: a network with a head, what it learns from preferences by, and the reward that it then is.

``value_model`` is the network (a critic's too), ``tuner`` trains it, ``reward`` scores with it.
"""
