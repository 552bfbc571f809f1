"""Where answers come from: the policy, teachers, servers, data, folders, and mixtures of them.

Each config stands beside its sampler; ``generation`` draws for those that own a model.
"""
